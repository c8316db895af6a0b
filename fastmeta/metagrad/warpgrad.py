"""The trajectory-free meta-gradient of WarpGrad."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_bool, check_choice
from fastmeta.adaptation import Adaptation, Adapted, run_inner_loop
from fastmeta.adaptation.layers import in_module
from fastmeta.functional import twice_differentiable
from fastmeta.inner_step import at_step
from fastmeta.metagrad._path import Path
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.task_losses import TaskLosses

Initialisation = Literal["leap", "reptile", "first-order"]


class WarpGrad(MetaGradient):
    """Trains what the inner loop does not adapt by single steps from the points that it visits.

    Flennerhag et al. 2020, "Meta-Learning with Warped Gradient Descent" (arXiv 1909.00025), and
    their code. For the parameters `phi` that no inner step adapts, such as warp layers, and for
    learned rates the meta-gradient is that of

        1/K sum_k Q(theta_k - lr grad S(theta_k; phi); phi)

    with the visited points `theta_k` held fixed: one step of the adaptation is differentiated
    at each, nothing through the inner loop. Memory does not grow with `K`; a meta-step evaluates
    the query set `K` times. The adapted parameters get the meta-gradient of `initialisation`,
    and if all are adapted without learned rates, there is nothing else.

    The authors keep the points of several tasks, draw two new batches for each, and take outer
    steps over shuffled points. **Ours** is one outer step per meta-batch from all its points,
    where they are visited, with the support set as the first batch and the query set as the second.

    Args:
        initialisation: the meta-gradient of adapted parameters. `"leap"`: that of
            [`Leap`][fastmeta.metagrad.Leap], as in the paper. `"reptile"`: `theta_0 - theta_K`,
            on the support set alone. `"first-order"`: the query gradient at `theta_K`.
        approximate: hold the gradient of the step fixed, too (the authors' `approx`), so that
            nothing is differentiated twice: `phi` gets the query gradient at the points after
            each step.

    Raises:
        ValueError: if `initialisation` is unknown.
    """

    task_batchable = True

    def __init__(self, initialisation: Initialisation = "leap", approximate: bool = False) -> None:
        check_choice("initialisation", initialisation, get_args(Initialisation))
        check_bool("approximate", approximate)
        self.initialisation = initialisation
        self.approximate = approximate

    @property
    @override
    def second_order(self) -> bool:
        return not self.approximate

    @override
    def prepare(self, params: Sequence[Tensor], names: Sequence[str]) -> Sequence[bool]:
        """Which parameters are the module's, not a co-learner's, which is not adapted either."""
        return [in_module(name) for name in names]

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        with twice_differentiable() if self.second_order else nullcontext():
            return self._task(losses, params, adaptation, context)

    def _task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        count = adaptation.steps
        if not count:
            raise ValueError(
                "metagrad.WarpGrad takes gradients at the points of the inner loop, which has no "
                "step; expected at least one inner step."
            )
        masks = [adaptation.adapts(k, params) for k in range(count)]
        of_module: Sequence[bool] = context.prepared
        constant = [
            i
            for i, moves in enumerate(zip(*masks, strict=True))
            if not (of_module[i] and any(moves))
        ]
        path = Path(self.initialisation == "leap", params, context.layout)
        found = Adapted(_detached(params), [], [], [])
        found.state = adaptation.start(found.fast)
        # Of the parameters that no step adapts, then of the rates.
        total: list[Tensor | None] = [None] * (len(constant) + len(adaptation.rates))
        at_end: Sequence[Tensor | None] = []
        for k in range(count):
            point, last = [p.requires_grad_() for p in found.fast], k == count - 1
            step = run_inner_loop(
                adaptation,
                lambda p: losses.support(p)[0],
                point,
                steps=1,
                first=k,
                state=found.state,
                create_graph=True,
                record=context.record_support,
                differentiated=[[not self.approximate] * len(point)],
            )
            with nullcontext() if last else at_step(k):
                loss, output = losses.query(step.fast)
            sources = [*(point[i] for i in constant), *adaptation.rates]
            ends = step.fast if last and self.initialisation == "first-order" else []
            if sources or ends:
                grads = torch.autograd.grad(loss, [*sources, *ends], allow_unused=True)
                at_end = grads[len(sources) :]
                total = [_plus(t, g, count) for t, g in zip(total, grads, strict=False)]
            path.visit(step.fast)
            found.fast, found.state = _detached(step.fast), _detached(step.state)
            found.losses += step.losses
            found.inner_grads += step.inner_grads
            loss, output = loss.detach(), output.detach()
            del step, ends  # and the graph, before the next one is made
        outer: list[Tensor | None] = [*(at_end or path.total), *total[len(constant) :]]
        for i, grad in zip(constant, total, strict=False):
            outer[i] = grad
        return TaskGradient.of(outer, found, loss, output, context)


def _detached(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach() for t in tensors]


def _plus(total: Tensor | None, grad: Tensor | None, count: int) -> Tensor | None:
    if grad is None:
        return total
    return grad / count if total is None else total + grad / count
