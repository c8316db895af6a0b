"""A configuration as TOML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def entries(values: Mapping[str, Any]) -> Iterator[str]:
    """A line for each value; `None`, which TOML does not have, as a comment."""
    for name, value in values.items():
        yield f"# {name} is not set" if value is None else f"{name} = {_literal(value)}"


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = (f"{json.dumps(k)} = {_literal(v)}" for k, v in value.items() if v is not None)
        return f"{{ {', '.join(inner)} }}" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)
