"""Torch twin of the whole meta-step of a multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

# The compiled op knows activations and losses by their place here.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
}


def mlp_step(
    params: Sequence[Tensor],
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    activations: Sequence[str],
    loss: str,
    lr: float,
    steps: int,
    exact: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """See :func:`fastmeta.ops.mlp_step`; the mean inner gradients are ``None`` without steps."""
    value = partial(_loss, activations=activations, loss=LOSSES[loss])
    rows = []
    for x, y, new_x, new_y in zip(support_x, support_y, query_x, query_y, strict=True):
        start = [p.detach().requires_grad_() for p in params]
        fast, losses, inner = start, [], []
        for _ in range(steps):
            now, _ = value(fast, x, y)
            grads = torch.autograd.grad(now, fast, create_graph=exact)
            losses.append(now.detach())
            inner.append(_flat(grads))
            fast = [p - lr * g for p, g in zip(fast, grads, strict=True)]
            if not exact:
                fast = [p.detach().requires_grad_() for p in fast]
        now, output = value(fast, new_x, new_y)
        grads = torch.autograd.grad(now, start if exact else fast)
        mean = torch.stack(inner).mean(0) if steps else None
        now = now.detach()
        rows.append((_flat(grads), mean, losses[0] if steps else now, now, output.detach()))
    query, inner_means, before, after, outputs = zip(*rows, strict=True)
    return (
        torch.stack(query),
        torch.stack(inner_means) if steps else None,
        torch.stack(before),
        torch.stack(after),
        torch.stack(outputs),
    )


def _loss(
    params: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    *,
    activations: Sequence[str],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    rest, pending = list(params), list(activations)
    while rest:
        weight = rest.pop(0)
        bias = rest.pop(0) if rest and rest[0].dim() == 1 else None
        x = F.linear(x, weight, bias)
        x = ACTIVATIONS[pending.pop(0)](x) if rest else x
    return loss(x, y), x


def _flat(grads: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.detach().flatten() for g in grads])
