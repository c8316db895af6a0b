"""The reverse sweep over the inner steps, for exact meta-gradients without a graph of the loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation import Adaptation, Cotangents, InnerStep, Tape, run_inner_loop
from fastmeta.metagrad._replay import Replay
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient, TaskLosses


class ReverseSweep(MetaGradient):
    """From the query gradient at the last parameters back to the first, one inner step at a time.

    The inner loop keeps no graph, but the parameters before each step and what the adaptation's
    :meth:`~fastmeta.adaptation.Adaptation.vjp` needs. Buffers are constants.

    Attributes:
        graphs: for how many of the last inner steps the graph is kept, too.
        gradients: whether the gradients of the others are kept, where all parameters are adapted.
    """

    graphs: int = 0
    gradients: bool = False

    @abstractmethod
    def through_grads(self, step: InnerStep, back: Cotangents, replay: Replay) -> Sequence[Tensor]:
        """``back.params + H back.grads``, ``H`` the Hessian of the step's support loss.

        Args:
            step: the inner step.
            back: the derivatives in the arguments of its update.
            replay: its last evaluation is the step's; to be repeated or forgotten.
        """

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        replay, tape = Replay(losses, params[0].device), Tape(self.graphs, self.gradients)
        record = context.record_support
        adapted = run_inner_loop(adaptation, replay.loss, params, record=record, tape=tape)
        loss, output = losses.query(adapted.fast)
        grads = torch.autograd.grad(loss, adapted.fast, allow_unused=True, materialize_grads=True)
        loss, output = loss.detach(), output.detach()  # free the query's graph before the sweep
        v, d_rates = tape.reverse_sweep(
            grads,
            adapted.state,
            adaptation.rates,
            lambda step, back: self.through_grads(step, back, replay),
        )
        return TaskGradient.of([*v, *d_rates], adapted, loss, output, context)
