"""Sums of gradients of several tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def added(total: Sequence[Tensor | None], more: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The sums; `None` means zero."""
    return [a if b is None else b if a is None else a + b for a, b in zip(total, more, strict=True)]
