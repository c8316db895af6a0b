"""The first-order meta-gradient of a task that is not split (Meta-RKHS-I)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation import Adaptation
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.first_order import first_order
from fastmeta.metagrad.task_losses import TaskLosses


class JointFirstOrder(MetaGradient):
    """FOMAML with support and query together in both loops: Meta-RKHS-I in first-order form.

    Zhou et al. 2021, "Meta-Learning with Neural Tangent Kernels" (arXiv 2102.03909), minimise

        L(theta) - alpha |grad L(theta)|^2

    with `L` the loss on all examples of a task, so without an inner loop: the meta-gradient is
    `g - 2 alpha H g`. This objective has no lower bound for the squared error. The meta-gradient
    here is **our form** of it,

        grad L(theta - a grad L(theta)) = g - a H g + O(a^2)

    which is that of the paper for `a = 2 alpha`, the rate of one step of the inner optimizer, is
    bounded, and needs no second derivatives. `L` is the mean of the support and the query loss.

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
        supports: list[Tensor] = []
        queries: list[Tensor] = []

        def joint(fast: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            support, _ = losses.support(fast)
            query, output = losses.query(fast)
            supports.append(support.detach())
            queries.append(query.detach())
            return 0.5 * (support + query), output

        found, _ = first_order(lambda p: joint(p)[0], joint, params, adaptation, context)
        return replace(found, support_loss=supports[0], query_loss=queries[-1])
