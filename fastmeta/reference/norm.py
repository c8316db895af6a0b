"""Reference implementations of the norm ops: plain PyTorch, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Reference implementation of [`fastmeta.ops.batch_norm_relu`][]."""
    images = x.unflatten(0, (*weight.shape[:-1], -1))  # (G, N, C, H, W), or x itself without groups
    channel = (..., None, slice(None), None, None)
    mean = images.mean((-4, -2, -1))
    centred = images - mean[channel]
    var = centred.square().mean((-4, -2, -1))
    scale = weight * torch.rsqrt(var + eps)
    z = torch.relu(centred * scale[channel] + bias[channel]).flatten(0, -4)
    return F.max_pool2d(z, 2) if pool else z, mean.detach(), var.detach()


def _output(eps: float, pool: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The block's output `z` as a function of the differentiable inputs."""
    return lambda x, weight, bias: batch_norm_relu(x, weight, bias, eps, pool)[0]


def norm_backward(
    dz: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `<dz, z>` with respect to `x`, `weight` and `bias` (VJP)."""
    vjp = torch.func.vjp(_output(eps, pool), x, weight, bias)[1]
    grads: tuple[Tensor, Tensor, Tensor] = vjp(dz)
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
    """The directional derivative of `z` along `(u, p, q)` (JVP)."""
    tangent: Tensor = torch.func.jvp(_output(eps, pool), (x, weight, bias), (u, p, q))[1]
    return tangent


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
    """JVPs along `(u, p, q)` of `z` and of the gradients of `x` and `weight`."""

    def both(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = _output(eps, pool)(x, weight, bias)
        return z, *norm_backward(dz, x, weight, bias, eps, pool)[:2]

    tangents: tuple[Tensor, Tensor, Tensor] = torch.func.jvp(both, (x, weight, bias), (u, p, q))[1]
    return tangents
