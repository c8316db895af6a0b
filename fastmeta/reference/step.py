"""Torch twins of the elementwise steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.reference.dtypes import accumulation_dtype


def inner_step(
    theta: Sequence[Tensor], grad: Sequence[Tensor], alpha: Sequence[Tensor], frozen: Sequence[int]
) -> tuple[Tensor, ...]:
    """See :func:`fastmeta.ops.inner_step`; ``alpha`` and ``frozen`` have one entry a tensor."""
    acc = accumulation_dtype(theta[0].dtype)
    return tuple(
        t.clone() if stop else (t.to(acc) - a * g.to(acc)).to(t.dtype)
        for t, g, a, stop in zip(theta, grad, alpha, frozen, strict=True)
    )


def hvp_perturb(theta: Tensor, v: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`fastmeta.ops.hvp_perturb`."""
    move = eps[:, None] * v.to(eps.dtype)
    return (theta + move).to(theta.dtype), (theta - move).to(theta.dtype)


def hvp_difference(
    v: Tensor, g_plus: Tensor, g_minus: Tensor, eps: Tensor, alpha: Tensor
) -> Tensor:
    """See :func:`fastmeta.ops.hvp_difference`."""
    acc = eps.dtype
    still = (eps == 0)[:, None]
    width = torch.where(still, torch.ones_like(eps[:, None]), 2 * eps[:, None])
    hvp = (g_plus.to(acc) - g_minus.to(acc)) / width
    return torch.where(still, v.to(acc), v.to(acc) - alpha * hvp).to(v.dtype)
