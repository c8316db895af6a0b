"""The inner-loop context of ``higher``."""

from __future__ import annotations

from typing import Any

import higher
import torch

from benchmarks.rivals.cases import Case


def make(case: Case, module: Any, batch: Any) -> Any:
    loss = case.loss
    inner = torch.optim.SGD(module.parameters(), lr=case.lr)
    second = case.order == 2

    def meta_gradient() -> Any:
        total = [torch.zeros_like(p) for p in module.parameters()]
        for x, y, query_x, query_y in zip(*batch, strict=True):
            context = higher.innerloop_ctx(
                module, inner, copy_initial_weights=False, track_higher_grads=second
            )
            with context as (fast, optimizer):
                for _ in range(case.steps):
                    optimizer.step(loss(fast(x), y))
                value = loss(fast(query_x), query_y)
                at = list(module.parameters()) if second else list(fast.parameters())
                torch._foreach_add_(total, torch.autograd.grad(value, at))
        return torch._foreach_div(total, case.tasks)

    return meta_gradient
