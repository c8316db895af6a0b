"""The first-order meta-gradient of FOMAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation import Adaptation, Adapted, LossFn, Tape, run_inner_loop
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.task_losses import Evaluate, TaskLosses


class FirstOrder(MetaGradient):
    """The query gradient at the fast weights: MAML without its second derivatives.

    Finn et al. 2017, section 5.2; Nichol et al. 2018, "On First-Order Meta-Learning Algorithms".
    The gradient of learned rates is taken with the inner gradients held fixed.
    """

    task_batchable = True

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        def support(fast: Sequence[Tensor]) -> Tensor:
            return losses.support(fast)[0]

        return first_order(support, losses.query, params, adaptation, context)[0]


def first_order(
    support: LossFn,
    query: Evaluate,
    params: Sequence[Tensor],
    adaptation: Adaptation,
    context: StepContext,
) -> tuple[TaskGradient, Adapted]:
    """The first-order meta-gradient of a task, and the result of its inner loop.

    Args:
        support: the support loss.
        query: loss and outputs on the query set.
        params: the initialisation.
        adaptation: the inner loop.
        context: the meta-step.
    """
    tape = Tape() if adaptation.rates else None
    adapted = run_inner_loop(adaptation, support, params, record=context.record_support, tape=tape)
    loss, output = query(adapted.fast)
    grads = torch.autograd.grad(
        loss, adapted.fast, allow_unused=True, materialize_grads=tape is not None
    )
    # A reverse sweep over the updates only: inner gradients are constants.
    d_rates: list[Tensor] = []
    if tape is not None:
        d_state = [torch.zeros_like(s) for s in adapted.state]
        _, _, d_rates = tape.reverse_sweep(grads, d_state, adaptation.rates)
    return TaskGradient.of([*grads, *d_rates], adapted, loss, output, context), adapted
