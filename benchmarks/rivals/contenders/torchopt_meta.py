"""``MetaSGD`` of TorchOpt, which always differentiates through the inner loop."""

from __future__ import annotations

from typing import Any

import torch
import torchopt

from benchmarks.rivals.cases import Case


def make(case: Case, module: Any, batch: Any) -> Any:
    if case.order == 1:
        raise ImportError("TorchOpt has no first-order mode")
    loss = case.loss
    inner = torchopt.MetaSGD(module, lr=case.lr)
    start = list(module.parameters())

    def meta_gradient() -> Any:
        total = [torch.zeros_like(p) for p in start]
        weights = torchopt.extract_state_dict(module, by="reference")
        state = torchopt.extract_state_dict(inner, by="reference")
        for x, y, query_x, query_y in zip(*batch, strict=True):
            for _ in range(case.steps):
                inner.step(loss(module(x), y))
            value = loss(module(query_x), query_y)
            torch._foreach_add_(total, torch.autograd.grad(value, start))
            torchopt.recover_state_dict(module, weights)
            torchopt.recover_state_dict(inner, state)
        return torch._foreach_div(total, case.tasks)

    return meta_gradient
