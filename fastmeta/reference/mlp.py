"""Reference implementation of the meta-step of a multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

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
    differentiated: Sequence[Sequence[bool]] | None = None,
    lam_d: float = 1.0,
    lam_c: float = 0.0,
    lam_2: float = 0.0,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Reference implementation of [`fastmeta.ops.mlp_step`][].

    Without inner steps, the mean inner gradients are `None`.
    """
    evaluate = partial(_loss, activations=activations, loss=LOSSES[loss])
    masks = differentiated or [[True] * (len(activations) + 1)]
    layers = list(accumulate(p.dim() > 1 for p in params))  # of each parameter, from 1
    results = []
    for sx, sy, qx, qy in zip(support_x, support_y, query_x, query_y, strict=True):
        fast, losses, trace = [p.detach().requires_grad_() for p in params], [], []
        for _ in range(steps):
            value, _ = evaluate(fast, sx, sy)
            grads = torch.autograd.grad(value, fast, create_graph=True)
            losses.append(value.detach())
            trace.append((fast, grads))
            fast = [
                (p - lr * g).detach().requires_grad_() for p, g in zip(fast, grads, strict=True)
            ]
        value, output = evaluate(fast, qx, qy)
        v = list(torch.autograd.grad(value, fast))
        for k in reversed(range(steps)):
            mask = masks[min(k, len(masks) - 1)]
            chosen = [i for i, layer in enumerate(layers) if mask[layer - 1]]
            if not chosen:
                continue
            start, grads = trace[k]
            g = [grads[i] for i in chosen]
            d = _cotangents([h.detach() for h in g], [v[i] for i in chosen], lam_d, lam_c, lam_2)
            # With a linear network and loss, a gradient may not depend on the parameters.
            products = torch.autograd.grad(g, start, d, allow_unused=True, materialize_grads=True)
            v = [x - lr * h for x, h in zip(v, products, strict=True)]
        mean = torch.stack([_flat(grads) for _, grads in trace]).mean(0) if steps else None
        value = value.detach()
        results.append((_flat(v), mean, losses[0] if steps else value, value, output.detach()))
    meta, inner_means, support_losses, query_losses, outputs = zip(*results, strict=True)
    return (
        torch.stack(meta),
        torch.stack(inner_means) if steps else None,
        torch.stack(support_losses),
        torch.stack(query_losses),
        torch.stack(outputs),
    )


def _cotangents(
    g: Sequence[Tensor], v: Sequence[Tensor], lam_d: float, lam_c: float, lam_2: float
) -> list[Tensor]:
    dot = torch.stack([(a * b).sum() for a, b in zip(g, v, strict=True)]).sum()
    square = torch.stack([a.square().sum() for a in g]).sum()
    along = lam_2 + lam_c * torch.where(square > 0, dot / square, 0)
    return [(lam_d + lam_c + lam_2) * b - along * a for a, b in zip(g, v, strict=True)]


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
