"""The correction of GSLCorrection, rescaled to the estimated norm of the Hessian term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from typing_extensions import override

from fastmeta.adaptation import Adaptation, Grads
from fastmeta.metagrad.base import StepContext, TaskGradient
from fastmeta.metagrad.first_order import first_order
from fastmeta.metagrad.gsl._secant import secant
from fastmeta.metagrad.gsl.correction import GSLCorrection
from fastmeta.metagrad.task_losses import TaskLosses
from fastmeta.trajectory.replay import Replay


class CurvatureGSL(GSLCorrection):
    """`GSL` with the magnitude rule `"inner-lr"`: `|d| = a |H| |u|`, per task.

    `|H|` is estimated by `|g_s(theta) - g_s(theta')| / (a |g_s(theta)|)`, `theta'` being the
    parameters after the first inner step of rate `a`, which cancels: the rule is defined for any
    inner loop. Costs one more support gradient per task if there is only one inner step.

    Args:
        **options: those of [`GSLCorrection`][fastmeta.metagrad.GSLCorrection], except `magnitude`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(magnitude="norm-match", **options)

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        if not self.needs_support_gradients:
            return super().task(losses, params, adaptation, context)
        replay = Replay(lambda p: losses.support(p)[0], losses.buffers, params[0].device)
        result, adapted = first_order(replay.loss, losses.query, params, adaptation, context)
        change, norm = _norm(secant(adapted, replay)), _norm(adapted.inner_grads[0])
        return replace(result, extras={"hessian_norm": torch.where(norm > 0, change / norm, 0)})

    @override
    def coefficients(
        self, stats: Tensor, extras: Mapping[str, Tensor], context: StepContext
    ) -> Tensor:
        coef = super().coefficients(stats, extras, context)
        norm = extras["hessian_norm"].to(coef)
        # u + norm * (corrected - u): only the correction is rescaled.
        coef = norm[:, None, None] * coef
        coef[..., 0] += 1 - norm[:, None]
        return coef


def _norm(grads: Grads) -> Tensor:
    return get_total_norm([g for g in grads if g is not None])
