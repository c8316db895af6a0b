"""The meta-gradient of Leap, in its simplified form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation import Adaptation, run_inner_loop
from fastmeta.metagrad._path import Path
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.task_losses import TaskLosses


class Leap(MetaGradient):
    """The sum of the inner steps, each divided by its length.

    `sum_k (theta_k - theta_{k+1}) / |theta_k - theta_{k+1}|`, the gradient of the length of the
    path from the initialisation to the fast weights with all later points held fixed: Leap
    (Flennerhag, Moreno, Lawrence, Damianou 2019, arXiv 1812.01054) in the simplified form of
    WarpGrad (Flennerhag et al. 2020), whose path has no coordinate for the loss. The inner loop
    runs on the support set; the query set is for results only.
    """

    task_batchable = True

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
        path = Path(True, params, context.layout)

        def loss(fast: Sequence[Tensor]) -> Tensor:
            path.visit(fast)  # from the initialisation to itself at first
            return losses.support(fast)[0]

        adapted = run_inner_loop(adaptation, loss, params, record=context.record_support)
        path.visit(adapted.fast)
        with torch.no_grad():
            query, output = losses.query(adapted.fast)
        return TaskGradient.of(path.total, adapted, query, output, context)
