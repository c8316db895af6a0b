"""Code blocks and ``fastmeta`` commands of Markdown pages."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# What is trained on another machine differs by rounding, magnified: by a tenth or two of a score.
_RELATIVE, _ABSOLUTE = 0.3, 0.15

_FENCE = re.compile(r"^( *)```(\w*)([^\n`]*)\n(.*?)^\1```$", re.M | re.S)
_OUTPUT = re.compile(
    r"^```python[^\n]*\n(?P<code>(?:(?!```)[^\n]*\n)*)```\n\n"
    r'```text title="Output"\n(?P<printed>.*?)^```$',
    re.M | re.S,
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_PICTURE = re.compile(r"^!\[[^\]]*\]\(([\w-]+\.(?:png|svg))\)$", re.M)
_OPTION = re.compile(r'([\w-]+)="([^"]*)"')
# Within a sentence, a command with arguments; `fastmeta evaluate` alone is only its name.
_INLINE = re.compile(r"`(fastmeta\s+(?:train|evaluate|export|tune-pattern|info)\s+[-A-Z][^`]*)`")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        language: the first word behind the fence.
        options: the others, such as ``title="gsl.toml"`` or ``not-run="why"``.
        line: of the page, before the code.
        code: without the indentation of the fence.
    """

    language: str
    options: dict[str, str]
    line: int
    code: str


def blocks(text: str, language: str) -> list[Block]:
    """The blocks of a page in one language, in order."""
    found = []
    for match in _FENCE.finditer(text):
        indent, name, rest, code = match.groups()
        if name == language:
            line = text.count("\n", 0, match.start(4))
            plain = re.sub(f"^{indent}", "", code, flags=re.M)
            found.append(Block(name, dict(_OPTION.findall(rest)), line, plain))
    return found


def outputs(text: str) -> dict[int, str]:
    """The printed outputs that a page shows, by the line of the Python block before them."""
    return {
        text.count("\n", 0, match.start("code")): match["printed"]
        for match in _OUTPUT.finditer(text)
    }


def differing_output(shown: str, found: str) -> str | None:
    """How a printed output differs from the one shown: words, whole numbers, or others by far."""
    if _NUMBER.sub("#", " ".join(shown.split())) != _NUMBER.sub("#", " ".join(found.split())):
        return f"shown:\n{shown}printed:\n{found}"
    for old, new in zip(_NUMBER.findall(shown), _NUMBER.findall(found), strict=True):
        whole = old.isdigit() or new.isdigit()
        allowed = 0.0 if whole else max(_RELATIVE * abs(float(old)), _ABSOLUTE)
        if abs(float(old) - float(new)) > allowed:
            return f"shown {old}, printed {new}, in\n{found}"
    return None


def saved_pictures(text: str) -> list[str]:
    """The names of the pictures on a page that its code saves."""
    code = "".join(block.code for block in blocks(text, "python"))
    return [name for name in _PICTURE.findall(text) if f'"{name}"' in code]


def commands(text: str) -> list[list[str]]:
    """The arguments of each ``fastmeta`` command, in shell blocks and within sentences."""
    shell = "\n".join(block.code for block in blocks(text, "bash"))
    inline = [" ".join(line.split()) for line in _INLINE.findall(_FENCE.sub("", text))]
    lines = [*shell.replace("\\\n", " ").splitlines(), *inline]
    parts = [part for line in lines for part in re.split(r"&&|;|\|", line)]
    split = [
        shlex.split(re.sub(r"^.* -m (?=fastmeta )", "", part), comments=True) for part in parts
    ]
    return [arguments[1:] for arguments in split if arguments[:1] == ["fastmeta"]]


def sides(diff: str) -> tuple[str, str, int]:
    """The code before and after a diff that ignores indentation, and the number of new lines."""
    before, after, inside = [], [], None
    for line in diff.splitlines():
        sign, code = line[:1], line[1:]
        indent = len(code) - len(code.lstrip())
        if code.strip() and inside is not None and indent <= inside:
            inside = None
        if sign != "-":
            after.append(code)
        if sign != "+":
            before.append(code if inside is None else code[4:])
        elif code.lstrip().startswith("with ") and code.endswith(":"):
            inside = indent  # the block was not indented before
    return "\n".join(before), "\n".join(after), sum(x[:1] == "+" for x in diff.splitlines())
