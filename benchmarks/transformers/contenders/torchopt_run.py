"""TorchOpt's functional AdamW, with torch's composition of attention."""

from __future__ import annotations

from typing import Any

import torch
import torchopt
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.transformers.cases import Case

# Below the squares of gradients that matter; without it unused tokens have the derivative NaN.
EPS_ROOT = 1e-16


def make(case: Case, module: Any, batch: Any) -> Any:
    support_x, support_y, query_x, query_y = (part[0] for part in batch)
    start = dict(module.named_parameters())
    optimizer = torchopt.adamw(**case.adamw, eps_root=EPS_ROOT)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return case.loss(functional_call(module, params, (x,)), y)

    @sdpa_kernel(SDPBackend.MATH)
    def meta_gradient() -> Any:
        params, state = start, optimizer.init(start)
        for x, y in zip(support_x, support_y, strict=True):
            found = torch.autograd.grad(loss(params, x, y), params.values(), create_graph=True)
            grads = dict(zip(params, found, strict=True))
            updates, state = optimizer.update(grads, state, params=params, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return torch.autograd.grad(loss(params, query_x, query_y), list(start.values()))

    return meta_gradient
