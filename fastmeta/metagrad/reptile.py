"""Reptile's direction: where the inner loop went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation import Adaptation, run_inner_loop
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient, TaskLosses


class Reptile(MetaGradient):
    """The displacement ``theta - theta_K`` of the inner loop on support and query together.

    Nichol et al. 2018, algorithm 2: with an outer SGD of learning rate ``e`` the step is
    ``theta + e (theta_K - theta)``. Reptile does not split a task: it trains on all its examples,
    so the query loss and outputs reported are those of the last inner step, before its update.

    Args:
        use_query: ``False`` trains on the support set alone.
    """

    task_batchable = True

    def __init__(self, use_query: bool = True) -> None:
        self.use_query = use_query

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        before: list[Tensor] = []
        last: list[tuple[Tensor, Tensor]] = []

        def loss(fast: Sequence[Tensor]) -> Tensor:
            support, _ = losses.support(fast)
            before.append(support.detach())
            if not self.use_query:
                return support
            query, output = losses.query(fast)
            last[:] = [(query.detach(), output.detach())]
            return 0.5 * (support + query)

        adapted = run_inner_loop(adaptation, loss, params, record=context.record_support)
        if not last:
            with torch.no_grad():
                last.append(losses.query(adapted.fast))
        with torch.no_grad():
            moved = [p - f for p, f in zip(params, adapted.fast, strict=True)]
        found = TaskGradient.of(moved, adapted, *last[0], context)
        return replace(found, support_loss=before[0]) if before else found
