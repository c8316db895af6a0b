"""Reference implementations of layer and RMS normalisation: plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta.reference.dtypes import accumulation_dtype


def row_norm(x: Tensor, weight: Tensor, bias: Tensor, centred: bool, eps: float) -> Tensor:
    """Normalised rows times weight plus bias, for the rows of each group.

    Args:
        x: `(groups, rows, width)`.
        weight: `(groups, width)`.
        bias: shape of `weight`.
        centred: layer normalisation; RMS normalisation otherwise.
        eps: added to the mean of squares.
    """
    wide = accumulation_dtype(x.dtype)
    rows = x.to(wide)
    if centred:
        rows = rows - rows.mean(-1, keepdim=True)
    h = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)
    return (h * weight.to(wide)[:, None] + bias.to(wide)[:, None]).to(x.dtype)


def layer_norm(
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Reference implementation of [`fastmeta.ops.layer_norm`][]."""
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    centred = x - x.mean(dims, keepdim=True)
    h = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
    h = h if weight is None else h * weight
    return h if bias is None else h + bias


def rms_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Reference implementation of [`fastmeta.ops.rms_norm`][]."""
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    h = x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
    return h if weight is None else h * weight


def _output(centred: bool, eps: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda x, weight, bias: row_norm(x, weight, bias, centred, eps)


def row_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, centred: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `<dy, y>` with respect to `x`, `weight` and the bias (VJP)."""
    bias = torch.zeros_like(weight)
    grads: tuple[Tensor, Tensor, Tensor]
    grads = torch.func.vjp(_output(centred, eps), x, weight, bias)[1](dy)
    return grads


def row_norm_tangent(
    tx: Tensor,
    tweight: Tensor,
    tbias: Tensor,
    x: Tensor,
    weight: Tensor,
    centred: bool,
    eps: float,
) -> Tensor:
    """The directional derivative of `y` along `(tx, tweight, tbias)` (JVP)."""
    primals = x, weight, torch.zeros_like(weight)
    tangent: Tensor = torch.func.jvp(_output(centred, eps), primals, (tx, tweight, tbias))[1]
    return tangent


def row_norm_second(
    dy: Tensor,
    tdy: Tensor | None,
    tx: Tensor,
    tweight: Tensor,
    tbias: Tensor,
    x: Tensor,
    weight: Tensor,
    centred: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """JVPs along `(tdy, tx, tweight, tbias)` of `y` and of the gradients of its arguments."""
    change = torch.zeros_like(dy) if tdy is None else tdy

    def both(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y = row_norm(x, weight, bias, centred, eps)
        return y, *row_norm_backward(dy, x, weight, centred, eps)

    primals = dy, x, weight, torch.zeros_like(weight)
    ty, dx, dweight, dbias = torch.func.jvp(both, primals, (change, tx, tweight, tbias))[1]
    return ty, dx, dweight, dbias
