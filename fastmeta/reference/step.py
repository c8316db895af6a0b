"""Reference implementations of the elementwise steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.reference.dtypes import accumulation_dtype


def inner_step(
    theta: Sequence[Tensor], grad: Sequence[Tensor], alpha: Sequence[Tensor], frozen: Sequence[int]
) -> tuple[Tensor, ...]:
    """Reference implementation of [`fastmeta.ops.inner_step`][].

    `alpha` and `frozen` have one entry per tensor.
    """
    acc = accumulation_dtype(theta[0].dtype)
    return tuple(
        t.clone() if skip else (t.to(acc) - a * g.to(acc)).to(t.dtype)
        for t, g, a, skip in zip(theta, grad, alpha, frozen, strict=True)
    )


def hvp_perturb(theta: Tensor, v: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Reference implementation of [`fastmeta.ops.hvp_perturb`][]."""
    shift = eps[:, None] * v.to(eps.dtype)
    return (theta + shift).to(theta.dtype), (theta - shift).to(theta.dtype)


def hvp_difference(
    v: Tensor, g_plus: Tensor, g_minus: Tensor, eps: Tensor, alpha: Tensor
) -> Tensor:
    """Reference implementation of [`fastmeta.ops.hvp_difference`][]."""
    acc = eps.dtype
    zero = (eps == 0)[:, None]
    width = torch.where(zero, torch.ones_like(eps[:, None]), 2 * eps[:, None])
    hvp = (g_plus.to(acc) - g_minus.to(acc)) / width
    return torch.where(zero, v.to(acc), v.to(acc) - alpha * hvp).to(v.dtype)
