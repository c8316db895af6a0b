"""Task weights from the gradient similarity loss."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta.aggregation.base import Aggregation
from fastmeta.gradients import TaskGradients


class GslWeights(Aggregation):
    """``softmax(-GSL_i / tau)``, the GSL between a task's meta-gradient and the mean.

    Variant R3 of our reconstruction of GSL (Tak & Hong 2024).

    Args:
        rule: ``"softmax"`` or ``"linear"``, see :func:`fastmeta.ops.gsl_task_weights`.
        lam_c: weight of the cosine loss.
        lam_2: weight of the L2 loss.
        tau: temperature of the softmax.
    """

    def __init__(
        self,
        rule: Literal["softmax", "linear"] = "softmax",
        lam_c: float = 1.0,
        lam_2: float = 0.0,
        tau: float = 1.0,
    ) -> None:
        self.rule: Literal["softmax", "linear"] = rule
        self.lam_c, self.lam_2, self.tau = lam_c, lam_2, tau

    @override
    def weights(self, gradients: TaskGradients) -> Tensor:
        return ops.gsl_task_weights(
            gradients.mean_similarity(),
            gradients.finite,
            rule=self.rule,
            lam_c=self.lam_c,
            lam_2=self.lam_2,
            tau=self.tau,
        )
