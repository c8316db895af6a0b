"""``torch.func``: ``vmap`` over tasks of ``grad`` through ``grad``."""

from __future__ import annotations

from typing import Any

import torch
from torch.func import functional_call, grad, vmap

from benchmarks.rivals.cases import Case


def make(case: Case, module: Any, batch: Any) -> Any:
    loss = case.loss
    start = {name: p.detach() for name, p in module.named_parameters()}

    def value(params: Any, x: Any, y: Any) -> Any:
        return loss(functional_call(module, params, x), y)

    def adapted(params: Any, x: Any, y: Any) -> Any:
        for _ in range(case.steps):
            grads = grad(value)(params, x, y)
            params = {name: p - case.lr * grads[name] for name, p in params.items()}
        return params

    def second(params: Any, x: Any, y: Any, query_x: Any, query_y: Any) -> Any:
        return grad(lambda p: value(adapted(p, x, y), query_x, query_y))(params)

    def first(params: Any, x: Any, y: Any, query_x: Any, query_y: Any) -> Any:
        return grad(value)(adapted(params, x, y), query_x, query_y)

    tasks = vmap(second if case.order == 2 else first, in_dims=(None, 0, 0, 0, 0))

    def meta_gradient() -> Any:
        with torch.no_grad():
            return [grads.mean(0) for grads in tasks(start, *batch).values()]

    return meta_gradient
