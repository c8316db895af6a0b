"""The multi-step loss of MAML++."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_integer
from fastmeta.adaptation import Adaptation, LossFn, run_inner_loop
from fastmeta.functional import twice_differentiable
from fastmeta.inner_step import at_step, current_step
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.task_losses import TaskLosses

_MIN_WEIGHT = 0.03  # times 1 / K


class MultiStep(MetaGradient):
    """The gradient of `sum_k w_k Q(theta_k)`: the query loss after each of `K` inner steps.

    Antoniou et al. 2019, "How to train your MAML", section 4 (MSL, DA), with the weights of the
    authors' code, counted in meta-steps instead of epochs: at meta-step `t` each `w_k` but the
    last is `max(1 - t / anneal_steps, 0.03) / K`, and the weights sum to 1. From meta-step
    `anneal_steps` on only the last one is nonzero, which is [`Exact`][fastmeta.metagrad.Exact].

    After each inner step but the last, the query set is evaluated
    [`at_step`][fastmeta.inner_step.at_step] that step.

    Args:
        anneal_steps: number of meta-steps in which the losses after earlier inner steps are used.
        first_order_steps: number of first meta-steps in which inner gradients are held fixed, as in
            [`FirstOrder`][fastmeta.metagrad.FirstOrder]; afterwards the meta-gradient is exact.

    Raises:
        ValueError: if an argument is negative.
    """

    task_batchable = True
    second_order = True

    def __init__(self, anneal_steps: int = 5000, first_order_steps: int = 0) -> None:
        check_integer("anneal_steps", anneal_steps, 0)
        check_integer("first_order_steps", first_order_steps, 0)
        self.anneal_steps = anneal_steps
        self.first_order_steps = first_order_steps

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        first_order = context.step < self.first_order_steps
        with nullcontext() if first_order else twice_differentiable():
            return self._task(losses, params, adaptation, context, first_order)

    def _task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
        first_order: bool,
    ) -> TaskGradient:
        start = [p.detach().requires_grad_() for p in params]
        annealed = context.step >= self.anneal_steps
        early: list[Tensor] = []

        def support(p: Sequence[Tensor]) -> Tensor:
            return losses.support(p)[0]

        def loss(fast: Sequence[Tensor]) -> Tensor:
            step = current_step()
            if step and not annealed:
                with at_step(step - 1):
                    early.append(losses.query(fast)[0])
            return _linearized(support, fast) if first_order else support(fast)

        adapted = run_inner_loop(
            adaptation, loss, start, create_graph=True, record=context.record_support
        )
        last, output = losses.query(adapted.fast)
        total = last
        if early:
            weight = max(1 - context.step / self.anneal_steps, _MIN_WEIGHT) / (len(early) + 1)
            total = (1 - weight * len(early)) * last + weight * torch.stack(early).sum()
        grads = torch.autograd.grad(total, [*start, *adaptation.rates], allow_unused=True)
        return TaskGradient.of(grads, adapted, last, output, context)


def _linearized(loss: LossFn, params: Sequence[Tensor]) -> Tensor:
    """The first-order Taylor expansion of the loss at `params`: same value, same gradient."""
    point = [p.detach().requires_grad_() for p in params]
    value = loss(point)
    grads = torch.autograd.grad(value, point, allow_unused=True)
    triples = zip(grads, params, point, strict=True)
    linear = [(g * (p - q.detach())).sum() for g, p, q in triples if g is not None]
    return value.detach() + torch.stack(linear).sum()
