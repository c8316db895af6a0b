"""The ``MAML`` wrapper of learn2learn."""

from __future__ import annotations

from typing import Any

import learn2learn

from benchmarks.rivals.cases import Case
from benchmarks.rivals.contenders.losses import loss_of


def make(case: Case, module: Any, batch: Any) -> Any:
    loss = loss_of(case)
    maml = learn2learn.algorithms.MAML(module, lr=case.lr, first_order=case.order == 1)

    def meta_gradient() -> Any:
        maml.zero_grad()
        for x, y, query_x, query_y in zip(*batch, strict=True):
            learner = maml.clone()
            for _ in range(case.steps):
                learner.adapt(loss(learner(x), y))
            (loss(learner(query_x), query_y) / case.tasks).backward()
        return [p.grad for p in maml.parameters()]

    return meta_gradient
