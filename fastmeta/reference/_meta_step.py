"""Meta-steps by autograd, for the references of the compiled ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Loss and outputs for parameters, examples and targets, at an inner step or (-1) after the last.
Evaluate = Callable[[Sequence[Tensor], Tensor, Tensor, int], tuple[Tensor, Tensor]]


def meta_step(
    evaluate: Evaluate,
    params: Sequence[Tensor],
    tasks: Sequence[Tensor],
    lr: float,
    steps: int,
    differentiated: Sequence[Sequence[bool]],
    lam_d: float = 1.0,
    lam_c: float = 0.0,
    lam_2: float = 0.0,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Meta-gradients, mean inner gradients, support losses, query losses and query outputs.

    Args:
        evaluate: the network and its loss.
        params: the initialisation.
        tasks: `support_x`, `support_y`, `query_x` and `query_y`.
        lr: inner learning rate.
        steps: inner steps.
        differentiated: a mask over the parameters for each inner step; the last one for all others.
        lam_d: weight of the inner product.
        lam_c: weight of the cosine.
        lam_2: weight of the L2 distance.
    """
    results = []
    for sx, sy, qx, qy in zip(*tasks, strict=True):
        fast, losses, trace = [p.detach().requires_grad_() for p in params], [], []
        for k in range(steps):
            value, _ = evaluate(fast, sx, sy, k)
            grads = torch.autograd.grad(
                value, fast, create_graph=True, allow_unused=True, materialize_grads=True
            )
            losses.append(value.detach())
            trace.append((fast, grads))
            fast = [
                (p - lr * g).detach().requires_grad_() for p, g in zip(fast, grads, strict=True)
            ]
        value, output = evaluate(fast, qx, qy, -1)
        v = list(torch.autograd.grad(value, fast, allow_unused=True, materialize_grads=True))
        for k in reversed(range(steps)):
            mask = differentiated[min(k, len(differentiated) - 1)]
            start, grads = trace[k]
            chosen = [i for i, used in enumerate(mask) if used and grads[i].requires_grad]
            if not chosen:
                continue
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


def _flat(grads: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.detach().flatten() for g in grads])
