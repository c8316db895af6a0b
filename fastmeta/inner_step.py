"""The current inner step, for modules that depend on it, such as per-step BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_step: ContextVar[int | None] = ContextVar("inner step", default=None)


def current_step() -> int | None:
    """The current inner step, from 0; `None` outside an inner loop."""
    return _step.get()


@contextmanager
def at_step(step: int | None) -> Iterator[None]:
    """Context manager that sets the current inner step; contexts nest.

    The backward pass may run outside of the context, and in another thread: code that recomputes
    activations there must enter it again.
    """
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)
