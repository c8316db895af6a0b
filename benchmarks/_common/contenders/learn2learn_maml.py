"""The ``MAML`` wrapper of learn2learn."""

from __future__ import annotations

from typing import Any

import learn2learn


def make(case: Any, module: Any, batch: Any) -> Any:
    loss = case.loss
    maml = learn2learn.algorithms.MAML(
        module, lr=case.lr, first_order=case.order == 1, allow_nograd=True
    )

    def meta_gradient() -> Any:
        maml.zero_grad()
        for x, y, query_x, query_y in zip(*batch, strict=True):
            learner = maml.clone()
            for _ in range(case.steps):
                learner.adapt(loss(learner(x), y))
            (loss(learner(query_x), query_y) / case.tasks).backward()
        return [p.grad for p in maml.parameters() if p.requires_grad]

    return meta_gradient
