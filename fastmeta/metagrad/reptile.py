"""The meta-gradient of Reptile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_bool
from fastmeta.adaptation import Adaptation, run_inner_loop
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.task_losses import TaskLosses


class Reptile(MetaGradient):
    """The displacement `theta - theta_K` of the inner loop on support and query together.

    Nichol et al. 2018, algorithm 2: with an outer SGD of learning rate `e` the step is
    `theta + e (theta_K - theta)`. Reptile does not split a task: it trains on all its examples,
    so the reported query loss and outputs are those of the last inner step, before its update.

    Args:
        use_query: `False` trains on the support set alone.
    """

    task_batchable = True

    def __init__(self, use_query: bool = True) -> None:
        check_bool("use_query", use_query)
        self.use_query = use_query

    @property
    @override
    def has_query_loss(self) -> bool:
        return False

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        support_losses: list[Tensor] = []
        last_query: list[tuple[Tensor, Tensor]] = []

        def loss(fast: Sequence[Tensor]) -> Tensor:
            support, _ = losses.support(fast)
            support_losses.append(support.detach())
            if not self.use_query:
                return support
            query, output = losses.query(fast)
            last_query[:] = [(query.detach(), output.detach())]
            return 0.5 * (support + query)

        adapted = run_inner_loop(adaptation, loss, params, record=context.record_support)
        if not last_query:
            with torch.no_grad():
                last_query.append(losses.query(adapted.fast))
        with torch.no_grad():
            displacement = [p - f for p, f in zip(params, adapted.fast, strict=True)]
        result = TaskGradient.of(displacement, adapted, *last_query[0], context)
        return replace(result, support_loss=support_losses[0]) if support_losses else result
