"""Torch twins of the norm ops: the block in plain torch, and its derivatives by torch itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`fastmeta.ops.batch_norm_relu`."""
    images = x.unflatten(0, (*weight.shape[:-1], -1))  # (G, N, C, H, W), or as x is without groups
    channel = (..., None, slice(None), None, None)
    mean = images.mean((-4, -2, -1))
    centred = images - mean[channel]
    var = centred.square().mean((-4, -2, -1))
    scale = weight * torch.rsqrt(var + eps)
    z = torch.relu(centred * scale[channel] + bias[channel]).flatten(0, -4)
    return F.max_pool2d(z, 2) if pool else z, mean.detach(), var.detach()


def _output(eps: float, pool: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The block's ``z`` alone, as a function of what it is differentiated in."""
    return lambda x, weight, bias: batch_norm_relu(x, weight, bias, eps, pool)[0]


def norm_backward(
    dz: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``<dz, z>`` in ``x``, ``weight`` and ``bias``."""
    pull = torch.func.vjp(_output(eps, pool), x, weight, bias)[1]
    grads: tuple[Tensor, Tensor, Tensor] = pull(dz)
    return grads


def norm_tangent(
    u: Tensor,
    p: Tensor,
    q: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    pool: bool,
) -> Tensor:
    """The change of ``z`` along ``(u, p, q)``."""
    change: Tensor = torch.func.jvp(_output(eps, pool), (x, weight, bias), (u, p, q))[1]
    return change


def norm_second(
    dz: Tensor,
    u: Tensor,
    p: Tensor,
    q: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The change of ``z`` and of its gradients in ``x`` and ``weight`` along ``(u, p, q)``."""

    def both(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = _output(eps, pool)(x, weight, bias)
        return z, *norm_backward(dz, x, weight, bias, eps, pool)[:2]

    changes: tuple[Tensor, Tensor, Tensor] = torch.func.jvp(both, (x, weight, bias), (u, p, q))[1]
    return changes
