"""A hand-written loop with ``torch.autograd.grad`` and ``functional_call``."""

from __future__ import annotations

from typing import Any

import torch
from torch.func import functional_call


def make(case: Any, module: Any, batch: Any) -> Any:
    loss = case.loss
    initial = {name: p for name, p in module.named_parameters() if p.requires_grad}
    names, start = list(initial), list(initial.values())

    def task(x: Any, y: Any, query_x: Any, query_y: Any) -> Any:
        fast = start
        for _ in range(case.steps):
            value = loss(functional_call(module, dict(zip(names, fast, strict=True)), x), y)
            grads = torch.autograd.grad(value, fast, create_graph=case.order == 2)
            fast = [p - case.lr * g for p, g in zip(fast, grads, strict=True)]
        value = loss(functional_call(module, dict(zip(names, fast, strict=True)), query_x), query_y)
        # First order: the Jacobian of the inner loop is the identity.
        return torch.autograd.grad(value, start if case.order == 2 else fast)

    def meta_gradient() -> Any:
        grads = [task(*parts) for parts in zip(*batch, strict=True)]
        return [sum(parts) / case.tasks for parts in zip(*grads, strict=True)]

    return meta_gradient
