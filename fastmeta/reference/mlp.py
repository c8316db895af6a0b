"""Reference implementation of the meta-step of a multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

# The compiled op identifies activations and losses by their positions here.
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
    """Reference implementation of [`fastmeta.ops.mlp_step`][].

    Without inner steps, the mean inner gradients are `None`.
    """
    evaluate = partial(_loss, activations=activations, loss=LOSSES[loss])
    results = []
    for sx, sy, qx, qy in zip(support_x, support_y, query_x, query_y, strict=True):
        initial = [p.detach().requires_grad_() for p in params]
        fast, losses, inner = initial, [], []
        for _ in range(steps):
            value, _ = evaluate(fast, sx, sy)
            grads = torch.autograd.grad(value, fast, create_graph=exact)
            losses.append(value.detach())
            inner.append(_flat(grads))
            fast = [p - lr * g for p, g in zip(fast, grads, strict=True)]
            if not exact:
                fast = [p.detach().requires_grad_() for p in fast]
        value, output = evaluate(fast, qx, qy)
        grads = torch.autograd.grad(value, initial if exact else fast)
        mean = torch.stack(inner).mean(0) if steps else None
        value = value.detach()
        results.append((_flat(grads), mean, losses[0] if steps else value, value, output.detach()))
    meta, inner_means, support_losses, query_losses, outputs = zip(*results, strict=True)
    return (
        torch.stack(meta),
        torch.stack(inner_means) if steps else None,
        torch.stack(support_losses),
        torch.stack(query_losses),
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
    remaining, names = list(params), list(activations)
    while remaining:
        weight = remaining.pop(0)
        bias = remaining.pop(0) if remaining and remaining[0].dim() == 1 else None
        x = F.linear(x, weight, bias)
        x = ACTIVATIONS[names.pop(0)](x) if remaining else x
    return loss(x, y), x


def _flat(grads: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.detach().flatten() for g in grads])
