"""Base class of meta-gradients by a reverse sweep, without a graph of the inner loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation import Adaptation, Cotangents, InnerStep
from fastmeta.metagrad._mixed_order import Masks, MixedOrder, mask_of
from fastmeta.metagrad.base import StepContext, TaskGradient
from fastmeta.metagrad.task_losses import TaskLosses
from fastmeta.trajectory.replay import Replay
from fastmeta.trajectory.schedule import Memory
from fastmeta.trajectory.trajectory import Trajectory

# See `ReverseSweep.through_grads`.
ThroughGrads = Callable[[InnerStep, Cotangents, Replay, StepContext], Sequence[Tensor]]


class ReverseSweep(MixedOrder):
    """Propagates the query gradient back to the initialisation, one inner step at a time.

    The inner loop keeps the parameters before each step and what the adaptation's
    [`pullback`][fastmeta.adaptation.Adaptation.pullback] needs, but no graph. Buffers are
    constants.

    Attributes:
        memory: which states of the inner loop are kept; the others are computed again.
        graphs: number of last inner steps whose graph is kept as well.
        gradients: whether the gradients of the other inner steps are kept, if all parameters are
            adapted.
    """

    memory: Memory = "all"
    graphs: int = 0
    gradients: bool = False

    @abstractmethod
    def through_grads(
        self, step: InnerStep, cotangents: Cotangents, replay: Replay, context: StepContext
    ) -> Sequence[Tensor]:
        """`cotangents.params + H cotangents.grads`, `H` the Hessian of the support loss.

        Args:
            step: the inner step.
            cotangents: derivatives with respect to the arguments of its update.
            replay: repeats the step, if its graph was not kept.
            context: the meta-step.
        """

    @override
    def differentiate(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        return self.sweep(losses, params, adaptation, context, context.prepared, self.through_grads)

    def sweep(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
        differentiated: Masks | None,
        through: ThroughGrads,
    ) -> TaskGradient:
        """The inner loop, the query gradient and the reverse sweep.

        Args:
            losses: the task.
            params: the initialisation.
            adaptation: the inner loop.
            context: the meta-step.
            differentiated: whose gradients have a graph in the steps whose graph is kept.
            through: see `through_grads`.
        """
        repeated = adaptation.steps - self.graphs
        replay = Replay(lambda p: losses.support(p)[0], losses.buffers, params[0].device, repeated)
        trajectory = Trajectory(
            adaptation,
            replay,
            self.memory,
            self.graphs,
            self.gradients,
            differentiated,
            context.record_support,
        )
        masks: Masks | None = context.prepared
        adapted = trajectory.run(params, adaptation.steps)
        loss, output = losses.query(adapted.fast)
        grads = torch.autograd.grad(loss, adapted.fast, allow_unused=True, materialize_grads=True)
        loss, output = loss.detach(), output.detach()  # frees the query graph before the sweep
        adapted.fast = []

        def through_grads(step: InnerStep, cotangents: Cotangents) -> Sequence[Tensor]:
            used = [True] * len(params) if masks is None else mask_of(masks, step.number)
            grads = [cotangents.grads[i] if reads else None for i, reads in enumerate(used)]
            cotangents = cotangents._replace(grads=grads)
            return through(step, cotangents, replay, context)

        v, d_rates = trajectory.reverse(grads, through_grads)
        return TaskGradient.of([*v, *d_rates], adapted, loss, output, context)
