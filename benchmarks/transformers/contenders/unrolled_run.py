"""Plain autograd through the training run, with torch's composition of attention."""

from __future__ import annotations

from typing import Any

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.transformers.cases import Case


def make(case: Case, module: Any, batch: Any) -> Any:
    support_x, support_y, query_x, query_y = (part[0] for part in batch)
    names = [name for name, _ in module.named_parameters()]
    start = list(module.parameters())
    lr, (first, second), eps, decay = case.adamw.values()

    def loss(params: Any, x: Any, y: Any) -> Any:
        named = dict(zip(names, params, strict=True))
        return case.loss(functional_call(module, named, (x,)), y)

    def root(square: Any) -> Any:  # with derivative 0 at 0: unused tokens have no gradient
        positive = square > 0
        return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)

    @sdpa_kernel(SDPBackend.MATH)
    def meta_gradient() -> Any:
        params = start
        means = squares = [torch.zeros_like(p) for p in start]
        for k, (x, y) in enumerate(zip(support_x, support_y, strict=True), 1):
            grads = torch.autograd.grad(loss(params, x, y), params, create_graph=True)
            means = [first * m + (1 - first) * g for m, g in zip(means, grads, strict=True)]
            squares = [
                second * s + (1 - second) * g * g for s, g in zip(squares, grads, strict=True)
            ]
            params = [
                p * (1 - lr * decay) - lr / (1 - first**k) * m / (root(s / (1 - second**k)) + eps)
                for p, m, s in zip(params, means, squares, strict=True)
            ]
        return torch.autograd.grad(loss(params, query_x, query_y), start)

    return meta_gradient
