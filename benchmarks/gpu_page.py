"""The page of a GPU run: stages, and a Markdown table for each of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def page(found: dict[str, Any]) -> str:
    """Markdown of what ``gpu.py`` found."""
    facts = (
        f"{found['date']}, {found['device']} (compute capability {found['capability']}), driver "
        f"{found['driver']}, torch {found['torch']}, nvcc {found['nvcc']}, Python "
        f"{found['python']}. `python benchmarks/gpu.py` makes this page."
    )
    stages = [
        {"stage": name, "result": _passed(stage["result"]), "seconds": stage["seconds"]}
        for name, stage in found["stages"].items()
    ]
    parts = ["# Measured on a GPU", facts, "## Stages", _table(stages)]
    for name, rows in found.get("tables", {}).items():
        parts += [f"## {name.replace('_', ' ').capitalize()}", _table(rows)]
    return "\n\n".join(parts) + "\n"


def _passed(result: object) -> str:
    if result == 0:
        return "passed"
    return f"failed: {result}" if isinstance(result, int) else str(result)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_shown(name, row.get(name)) for name in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(name: str, value: object) -> str:
    if value is None:
        return ""
    if name == "of_copy" and isinstance(value, float):
        return f"{value:.0%}"
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"
