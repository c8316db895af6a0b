"""Functions in place of those of `torch.nn.functional`."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch.nn.functional as F


class FunctionPatch:
    """Replaces a function of `torch.nn.functional` while any thread is in this context.

    A `TorchFunctionMode` would not see calls within functions of torch, and slow down all others.

    Args:
        name: of the function.
        replacement: also called in threads that are not in this context; it must leave their calls
            to `original`.

    Attributes:
        original: the function that it replaces.
    """

    def __init__(self, name: str, replacement: Callable[..., Any]) -> None:
        self._name = name
        self._replacement = replacement
        self._lock = Lock()
        self._users = 0
        self.original: Any = getattr(F, name)

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self.original = getattr(F, self._name)
                setattr(F, self._name, self._replacement)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and getattr(F, self._name) is self._replacement:
                setattr(F, self._name, self.original)
