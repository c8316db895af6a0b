"""What the API pages read otherwise than the source has it.

Roles become links (a name that is nowhere fails the strict build), docstrings that only point
elsewhere go, and options are documented by their help.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

_ROLE = re.compile(r":(class|func|meth|attr|data|mod):`(~?)([\w.]+)`")
_REPEATED = re.compile(r"See :(class|meth):`[\w.]+`\.")


class Docstrings(griffe.Extension):
    """See the module."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """All of the package is known now, so that names can be looked up."""
        _rewrite(pkg)


def _rewrite(owner: griffe.Object) -> None:
    docstring = owner.docstring
    if isinstance(owner, griffe.Attribute) and docstring is None:
        owner.docstring = _help(owner)
    elif docstring is not None and _REPEATED.fullmatch(docstring.value):
        owner.docstring = None
    elif docstring is not None:
        text = docstring.value.replace("::\n\n", ":\n\n")  # before code
        docstring.value = _ROLE.sub(lambda match: _link(owner, match), text)
    for member in owner.members.values():
        if not member.is_alias:
            _rewrite(member)


def _help(field: griffe.Attribute) -> griffe.Docstring | None:
    """The line that documents a field of a configuration: what ``option`` is called with first."""
    value = field.value
    if not isinstance(value, griffe.ExprCall) or str(value.function) != "option":
        return None
    return griffe.Docstring(ast.literal_eval(str(value.arguments[0])), parent=field)


def _link(owner: griffe.Object, match: re.Match[str]) -> str:
    role, short, name = match.groups()
    text = f"`{name.rpartition('.')[2] if short else name}`"
    # Attributes have no place of their own, and a bare method is one of this class.
    near = role == "attr" or (role == "meth" and "." not in name)
    return text if near else f"[{text}][{_path(owner, name)}]"


def _path(owner: griffe.Object, name: str) -> str:
    first, dot, rest = name.partition(".")
    try:
        return owner.resolve(first) + dot + rest
    except griffe.NameResolutionError:
        return name
