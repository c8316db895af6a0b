"""Reference implementations of cross entropy: plain PyTorch, differentiated by autograd."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.reference.dtypes import accumulation_dtype


def row_losses(z: Tensor, target: Tensor, ignored: int, smoothing: float) -> Tensor:
    """The loss of each row of logits `(rows, classes)`, in the accumulation dtype."""
    z = z.to(accumulation_dtype(z.dtype))
    counts = target != ignored
    classes = torch.where(counts, target, 0)
    own = z.gather(1, classes[:, None]).squeeze(1)
    losses = z.logsumexp(1) - (1 - smoothing) * own - smoothing * z.mean(1)
    return torch.where(counts, losses, 0)


def cross_entropy(z: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Reference implementation of [`fastmeta.ops.cross_entropy`][]."""
    z = z.movedim(1, -1) if z.dim() > 1 else z
    return _reduced(z.reshape(-1, z.shape[-1]), target, **options)


def linear_cross_entropy(
    x: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Reference implementation of [`fastmeta.ops.linear_cross_entropy`][]: all logits at once."""
    z = F.linear(x.reshape(-1, x.shape[-1]), linear_weight, linear_bias)
    return _reduced(z, target, **options)


def _reduced(
    z: Tensor,
    target: Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    losses = row_losses(z, target.reshape(-1), ignore_index, label_smoothing)
    if reduction == "none":
        return losses.view(target.shape).to(z.dtype)
    total = losses.sum()
    return (total / (target != ignore_index).sum() if reduction == "mean" else total).to(z.dtype)


def cross_entropy_backward(
    dloss: Tensor, z: Tensor, target: Tensor, ignored: int, smoothing: float
) -> Tensor:
    """The gradient of `<dloss, losses>` with respect to the logits (VJP)."""
    vjp = torch.func.vjp(lambda z: row_losses(z, target, ignored, smoothing), z)[1]
    grad: Tensor = vjp(dloss)[0]
    return grad


def cross_entropy_tangent(
    tz: Tensor, z: Tensor, target: Tensor, ignored: int, smoothing: float
) -> Tensor:
    """The directional derivative of the losses along `tz` (JVP)."""
    tangent: Tensor = torch.func.jvp(
        lambda z: row_losses(z, target, ignored, smoothing), (z,), (tz,)
    )[1]
    return tangent


def cross_entropy_second(
    dloss: Tensor,
    tdloss: Tensor | None,
    tz: Tensor,
    z: Tensor,
    target: Tensor,
    ignored: int,
    smoothing: float,
) -> tuple[Tensor, Tensor]:
    """JVPs along `(tdloss, tz)` of the losses and of the gradient of the logits."""
    change = torch.zeros_like(dloss) if tdloss is None else tdloss

    def gradient(dloss: Tensor, z: Tensor) -> Tensor:
        return cross_entropy_backward(dloss, z, target, ignored, smoothing)

    tangent = torch.func.jvp(gradient, (dloss, z), (change, tz))[1]
    return cross_entropy_tangent(tz, z, target, ignored, smoothing), tangent


def linear_loss(
    x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, ignored: int, smoothing: float
) -> Tensor:
    """The sum of the losses of rows `(rows, width)`, in the accumulation dtype."""
    return row_losses(F.linear(x, weight, bias), target, ignored, smoothing).sum()


def linear_loss_grads(
    x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, ignored: int, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `linear_loss` with respect to `x`, `weight` and `bias`."""

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_loss(x, weight, bias, target, ignored, smoothing)

    grads: tuple[Tensor, Tensor, Tensor] = torch.func.grad(loss, (0, 1, 2))(x, weight, bias)
    return grads


def linear_loss_second(
    tx: Tensor,
    tweight: Tensor,
    tbias: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    ignored: int,
    smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The directional derivatives of these gradients along `(tx, tweight, tbias)` (JVP)."""

    def grads(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return linear_loss_grads(x, weight, bias, target, ignored, smoothing)

    directions = tx, tweight, tbias
    tangents: tuple[Tensor, Tensor, Tensor]
    tangents = torch.func.jvp(grads, (x, weight, bias), directions)[1]
    return tangents
