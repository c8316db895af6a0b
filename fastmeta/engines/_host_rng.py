"""Random numbers of Python and NumPy, which neither `vmap` nor a trace sees."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def reject_host_rng(engine: str, once_for: str) -> Iterator[None]:
    """Rejects code that draws random numbers from Python's or NumPy's generator.

    Args:
        engine: that runs the code.
        once_for: what would share the numbers, such as `"all tasks"`.

    Raises:
        NotImplementedError: if a number was drawn.
    """
    before = _states()
    yield
    if _states() != before:
        raise NotImplementedError(
            f"engine {engine!r} cannot run a module or a loss that draws random numbers: Python's "
            f"or NumPy's generator was used, once for {once_for}. Use engine='loop'."
        )


def _states() -> tuple[object, bytes]:
    return random.getstate(), pickle.dumps(np.random.get_state(legacy=False))
