"""How a stand-in says what it does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def missing(module: str, instead: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module that lacks the names of ``instead``.

    Args:
        module: its ``__name__``.
        instead: for each name that the original has, what to do.

    Returns:
        A function that raises an ``ImportError`` for these names (which, unlike an
        ``AttributeError``, keeps its message in ``from ... import``), and an ``AttributeError``
        for any other.
    """

    def look_up(name: str) -> Any:
        if name in instead:
            raise ImportError(f"{module} has no {name}: {instead[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return look_up
