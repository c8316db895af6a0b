"""The exact meta-gradient of MAML, by differentiating through the inner loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation import Adaptation, run_inner_loop
from fastmeta.metagrad._hvp import twice_differentiable
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient, TaskLosses


class Exact(MetaGradient):
    """The gradient of the query loss with respect to the initialisation, to second order.

    `(I - a H_1) ... (I - a H_K) g_q`; Finn et al. 2017, eq. 1, including all second derivatives.
    Learned rates get their exact gradient, too.
    """

    task_batchable = True
    second_order = True

    @override
    @twice_differentiable
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        start = [p.detach().requires_grad_() for p in params]
        adapted = run_inner_loop(
            adaptation,
            lambda p: losses.support(p)[0],
            start,
            create_graph=True,
            record=context.record_support,
        )
        loss, output = losses.query(adapted.fast)
        grads = torch.autograd.grad(loss, [*start, *adaptation.rates], allow_unused=True)
        return TaskGradient.of(grads, adapted, loss, output, context)
