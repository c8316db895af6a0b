"""Runs the tutorials, and writes their outputs, pictures and notebooks.

A tutorial is a Markdown page. `python docs/_site/tutorials.py` runs its Python blocks in order,
writes what each prints into the block titled "Output" or "Output of one run" behind it, copies the
pictures that the code saves and the page shows next, and makes the notebook of the same name.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))

_CELL = re.compile(
    r"^```python[^\n]*\n(?P<code>.*?)^```\n"
    r'(?P<output>\n```text title="Output[^"]*"\n(?P<printed>.*?)^```\n)?'
    r"(?P<pictures>(?:\n!\[[^\]]*\]\([^)]+\)\n)*)",
    re.M | re.S,
)
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
_API_LINK = re.compile(r"\[((?:`[^`]*`|[^\[\]])+)\]\[[\w.]*\]")


class Cell(NamedTuple):
    """A Python block with what follows it.

    Attributes:
        text: the Markdown before it.
        code: the block.
        printed: its output, or `None` if the page does not show it.
        pictures: their descriptions and file names.
    """

    text: str
    code: str
    printed: str | None
    pictures: list[tuple[str, str]]


def split(page: str) -> tuple[list[Cell], str]:
    """The cells of a page, and the text behind the last one."""
    cells, end = [], 0
    for match in _CELL.finditer(page):
        pictures = _PICTURE.findall(match["pictures"])
        cells.append(Cell(page[end : match.start()], match["code"], match["printed"], pictures))
        end = match.end()
    return cells, page[end:]


def notebook(page: str, folder: Path) -> dict[str, Any]:
    """The notebook of a page whose pictures are in `folder`.

    Links to the API reference, which only the site resolves, become plain text.
    """
    cells, rest = split(page)
    found: list[dict[str, Any]] = []
    for count, cell in enumerate(cells, 1):
        found += _markdown(cell.text)
        outputs: list[dict[str, Any]] = []
        if cell.printed is not None:
            text = _lines(cell.printed)
            outputs.append({"name": "stdout", "output_type": "stream", "text": text})
        for title, name in cell.pictures:
            data = base64.b64encode((folder / name).read_bytes()).decode()
            shown = {"image/png": data, "text/plain": [title]}
            outputs.append({"data": shown, "metadata": {}, "output_type": "display_data"})
        found.append(
            {
                "cell_type": "code",
                "execution_count": count,
                "metadata": {},
                "outputs": outputs,
                "source": _lines(cell.code.rstrip("\n")),
            }
        )
    found += _markdown(rest)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells_with_ids = [{**cell, "id": f"cell-{i}"} for i, cell in enumerate(found)]
    return {
        "cells": cells_with_ids,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _markdown(text: str) -> list[dict[str, Any]]:
    text = _API_LINK.sub(r"\1", text.strip())
    return [{"cell_type": "markdown", "metadata": {}, "source": _lines(text)}] if text else []


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def as_json(content: dict[str, Any]) -> str:
    """The text of a notebook's file."""
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def rerun(path: Path) -> None:
    """Runs a tutorial in an empty folder, and updates the page, its pictures and its notebook."""
    page, scope = path.read_text(), {"__name__": path.stem}

    def run(match: re.Match[str]) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(match["code"], path, "exec"), scope)
        for _, name in _PICTURE.findall(match["pictures"]):
            (path.parent / name).write_bytes(Path(name).read_bytes())
        if match["printed"] is None:
            return match[0]
        start, end = match.span("printed")
        text, offset = match[0], match.start()
        return text[: start - offset] + printed.getvalue() + text[end - offset :]

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        page = _CELL.sub(run, page)
        os.chdir(ROOT)
    path.write_text(page)
    path.with_suffix(".ipynb").write_text(as_json(notebook(page, path.parent)))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for tutorial in [Path(name).resolve() for name in sys.argv[1:]] or TUTORIALS:
        rerun(tutorial)
