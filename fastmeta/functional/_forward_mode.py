"""Forward derivatives of operations whose backward pass has none in torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastmeta.functional._patching import FunctionPatch

_active: ContextVar[bool] = ContextVar("forward mode", default=False)


@contextmanager
def forward_differentiable() -> Iterator[None]:
    """`F.silu` in this context has forward-over-reverse derivatives, where tangents are computed.

    torch has no forward derivative of `silu_backward` (as of 2.13), and most language models use
    this activation.
    """
    if forward_ad._current_level < 0:
        yield
        return
    token = _active.set(True)
    try:
        with _patch:
            yield
    finally:
        _active.reset(token)


def _silu(input: Tensor, inplace: bool = False) -> Tensor:
    """`F.silu`."""
    if not _active.get():
        found: Tensor = _patch.original(input, inplace)
        return found
    x = input.clone() if inplace else input  # the product keeps its factors
    result = x * torch.sigmoid(x)
    return input.copy_(result) if inplace else result


_patch = FunctionPatch("silu", _silu)
