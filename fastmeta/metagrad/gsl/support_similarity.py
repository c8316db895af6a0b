"""The gradient similarity loss, differentiated through the support gradient of the head."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_integer, check_nonnegative, check_number
from fastmeta.adaptation import Adaptation, Cotangents, Grads, InnerStep
from fastmeta.adaptation.inner_loop import inner_gradients
from fastmeta.metagrad._mixed_order import Masks
from fastmeta.metagrad._reverse_sweep import ReverseSweep
from fastmeta.metagrad.base import StepContext, TaskGradient
from fastmeta.metagrad.gsl._head_sweep import HeadSweep
from fastmeta.metagrad.task_losses import SupportHead, TaskLosses
from fastmeta.schedules import schedule as read_schedule
from fastmeta.trajectory.hvp import hvp_of_graph
from fastmeta.trajectory.replay import Replay


class GSL(ReverseSweep):
    """FOMAML plus the gradient of a similarity loss of the support and the query gradient.

    With `g(theta)` the support gradient of the last layer and `v` the query gradient, held fixed,

    `L(theta) = -lam_d <g, v> + lam_c |g| |v| (1 - cos(g, v)) + lam_2/2 |g - v|^2`

    (the norms in front of the cosine held fixed) is differentiated with respect to all parameters:
    `v <- v + a rho(t) eta grad L(theta_k)`, from the last inner step `k` of rate `a` to the first.
    For other inner optimizers `-a v` is the vector-Jacobian product of the update with respect to
    `g`. Our reconstruction of GSL/AHE (Tak & Hong 2024) as a loss.

    `grad <g, v>` is the product of the Hessian's columns of that layer with `v`: with `lam_d = 1`
    alone this is MAML's meta-gradient with these columns exact and the others dropped, so exactly
    MAML's if only the head is adapted (ANIL). It takes first-order calculations only: one more
    backward pass of the support set, with the cotangents of the head's support gradient. Buffers
    are constants.

    Args:
        eta: rate of the similarity loss; 0 is FOMAML.
        lam_d: weight of the inner product.
        lam_c: weight of the cosine.
        lam_2: weight of the L2 distance.
        schedule: `rho(t)`, see [`fastmeta.schedules.schedule`][].
        layers: whose support gradient is compared, see
            [`read_pattern`][fastmeta.adaptation.layer_pattern.read_pattern]; `"head"` is the last
            one. Second derivatives are taken down to the lowest of them.
        graphs: number of last inner steps whose graph is kept for the second backward pass; the
            others are evaluated again, which saves their memory. All by default.

    Raises:
        ValueError: if an option is out of range.
    """

    task_batchable = True

    def __init__(
        self,
        eta: float = 1.0,
        lam_d: float = 1.0,
        lam_c: float = 0.0,
        lam_2: float = 0.0,
        schedule: str = "constant",
        layers: str = "head",
        graphs: int | None = None,
    ) -> None:
        super().__init__(layers)
        check_number("eta", eta)
        for name, weight in (("lam_d", lam_d), ("lam_c", lam_c), ("lam_2", lam_2)):
            check_nonnegative(name, weight)
        read_schedule(schedule)  # not kept, so that the object can be pickled
        if graphs is not None:
            check_integer("graphs", graphs, 0)
        self.eta = eta
        self.lam_d, self.lam_c, self.lam_2 = lam_d, lam_c, lam_2
        self.schedule = schedule
        self.graphs = sys.maxsize if graphs is None else graphs
        self.task_batchable = lam_c == 0  # the cosine takes inner products over parameters

    @property
    @override
    def is_first_order(self) -> bool:
        return self.eta == 0 or super().is_first_order

    def rate(self, step: int) -> float:
        """`rho(t) eta` in meta-step `t`."""
        return self.eta * read_schedule(self.schedule)(step)

    @override
    def differentiate(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        head = losses.head() if self.lam_2 == 0 else None
        if head is None or not _is_head(context.prepared, head):
            return super().differentiate(losses, params, adaptation, context)
        sweep = HeadSweep(head)
        return self.sweep(
            replace(losses, support=sweep.support),
            params,
            adaptation,
            context,
            [[False] * len(params)],
            partial(self._through_head, sweep),
        )

    def _through_head(
        self,
        sweep: HeadSweep,
        step: InnerStep,
        cotangents: Cotangents,
        replay: Replay,
        context: StepContext,
    ) -> Sequence[Tensor]:
        """`through_grads` from the closed form of the last layer's gradient."""
        if cotangents.grads[sweep.head.weight] is None:
            sweep.discard()
            return cotangents.params
        loss, output, features = sweep.pop(step, replay)
        if features is None:
            return self.descend(
                step, _with_graph(loss, step.params, cotangents.grads), cotangents, context
            )
        products = sweep.products(features, output, step, cotangents.grads, self.lam_d, self.lam_c)
        return ops.inner_step(cotangents.params, products, -self.rate(context.step))

    @override
    def through_grads(
        self, step: InnerStep, cotangents: Cotangents, replay: Replay, context: StepContext
    ) -> Sequence[Tensor]:
        if step.grads is not None or all(grad is None for grad in cotangents.grads):
            return self.descend(step, step.grads or cotangents.grads, cotangents, context)
        with replay.repeat(step.number) as loss:
            grads = _with_graph(loss(step.params), step.params, cotangents.grads)
            return self.descend(step, grads, cotangents, context)

    def descend(
        self, step: InnerStep, grads: Grads, cotangents: Cotangents, context: StepContext
    ) -> Sequence[Tensor]:
        """The parameters' cotangents plus the gradient of the similarity loss of this step.

        Args:
            step: the inner step.
            grads: its support gradients with their graph, which is freed.
            cotangents: derivatives with respect to the arguments of its update.
            context: the meta-step.
        """
        direction = self.direction(step, grads, cotangents, context)
        return ops.inner_step(cotangents.params, hvp_of_graph(grads, step.params, direction), -1.0)

    @torch.no_grad()
    def direction(
        self, step: InnerStep, grads: Grads, cotangents: Cotangents, context: StepContext
    ) -> list[Tensor | None]:
        """The derivative of the similarity loss of this step with respect to its gradients.

        Arguments as of `descend`; only the values of `grads` are used.
        """
        rate = self.rate(context.step)
        direction = self._direction(step, grads, cotangents)
        return [None if d is None else rate * d for d in direction]

    def _direction(
        self, step: InnerStep, grads: Grads, cotangents: Cotangents
    ) -> list[Tensor | None]:
        """`-dL/dg`, as the cotangent of the gradients: `-a` times it for gradient descent."""
        total = self.lam_d + self.lam_c + self.lam_2
        direction = [None if c is None else total * c for c in cotangents.grads]
        # Both other losses have a part along g; that of the cosine removes the part of v along g.
        pairs = [
            (g, c) for g, c in zip(grads, cotangents.grads, strict=True) if g is not None is not c
        ]
        if self.lam_c and pairs:
            dot = torch.stack([(g * c).sum() for g, c in pairs]).sum()
            square = torch.stack([g.square().sum() for g, _ in pairs]).sum()
            along = self.lam_c * torch.where(square > 0, dot / square, 0)
            direction = _add(direction, [None if g is None else -along * g for g in grads])
        if self.lam_2:
            parts = [
                torch.zeros_like(p) if g is None else -self.lam_2 * g
                for p, g in zip(step.params, grads, strict=True)
            ]
            state = [torch.zeros_like(s) for s in cotangents.state]
            direction = _add(direction, step.pullback(parts, state).grads)
        return direction


def _add(direction: Grads, other: Grads) -> list[Tensor | None]:
    """The sum, where there is a direction."""
    return [d if d is None or o is None else d + o for d, o in zip(direction, other, strict=True)]


def _is_head(masks: Masks | None, head: SupportHead) -> bool:
    """Whether the masks choose the parameters of the head and no others."""
    chosen = {i for i in (head.weight, head.bias) if i is not None}
    return masks is not None and all(
        {i for i, used in enumerate(mask) if used} == chosen for mask in masks
    )


def _with_graph(loss: Tensor, params: Sequence[Tensor], wanted: Grads) -> list[Tensor | None]:
    """The gradients of the parameters for which one is wanted, with their graph."""
    return inner_gradients(
        loss, params, [grad is not None for grad in wanted], [True] * len(params)
    )
