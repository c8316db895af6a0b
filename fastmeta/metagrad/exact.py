"""The exact meta-gradient of MAML, by differentiating through the inner loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation import Adaptation, ClosedForm, run_inner_loop
from fastmeta.metagrad._mixed_order import MixedOrder
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.recursion import Recursion
from fastmeta.metagrad.task_losses import TaskLosses


class Exact(MixedOrder):
    """The gradient of the query loss with respect to the initialisation, to second order.

    `(I - a H_1) ... (I - a H_K) g_q`; Finn et al. 2017, eq. 1, including all second derivatives.
    Learned rates get their exact gradient, too.

    With `layers` the order is mixed: `H_k` keeps the columns of some layers only, whose inner
    gradients are differentiated; those of the others are constants. Nothing is differentiated
    twice below the lowest of these layers: `"head"` costs one more backward pass of the support
    set per inner step than FOMAML.

    A learner with activation checkpointing uses [`Recursion`][fastmeta.metagrad.Recursion] with
    `hvp="forward"` instead.

    Args:
        layers: `"all"`: MAML; `"none"`: FOMAML; or a pattern of layers, see
            [`read_pattern`][fastmeta.adaptation.layer_pattern.read_pattern], such as `"head"`.

    Raises:
        ValueError: if the pattern is neither a string nor a number made of bits.
    """

    task_batchable = True

    @property
    @override
    def closed_form(self) -> bool:
        return self.layers == "all"

    @override
    def checkpointed(self) -> MetaGradient | None:
        return Recursion(layers=self.layers).checkpointed()

    @override
    def differentiate(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        start = [p.detach().requires_grad_() for p in params]
        if isinstance(adaptation, ClosedForm):
            return _of_closed_form(losses, start, adaptation)
        adapted = run_inner_loop(
            adaptation,
            lambda p: losses.support(p)[0],
            start,
            create_graph=True,
            record=context.record_support,
            differentiated=context.prepared,
        )
        loss, output = losses.query(adapted.fast)
        grads = torch.autograd.grad(loss, [*start, *adaptation.rates], allow_unused=True)
        return TaskGradient.of(grads, adapted, loss, output, context)


def _of_closed_form(
    losses: TaskLosses, start: Sequence[Tensor], adaptation: ClosedForm
) -> TaskGradient:
    assert losses.fit is not None
    fast, support_loss = losses.fit(adaptation, start)
    loss, output = losses.query(fast)
    grads = torch.autograd.grad(loss, [*start, *adaptation.rates], allow_unused=True)
    return TaskGradient(grads, None, support_loss, loss.detach(), output.detach())
