"""Which inner step a module is evaluated for, for modules that differ from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_step: ContextVar[int | None] = ContextVar("inner step", default=None)


def current_step() -> int | None:
    """The inner step, from 0; ``None`` where there is none: before or after an inner loop."""
    return _step.get()


@contextmanager
def at_step(step: int | None) -> Iterator[None]:
    """Evaluations in this context belong to the inner step ``step``; contexts nest.

    The backward pass of an evaluation may leave the context, and the thread: what computes again
    there must enter it again.
    """
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)
