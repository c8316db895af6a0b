"""Task weights from the gradient similarity loss."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_choice, check_number, check_positive
from fastmeta.aggregation.base import Aggregation
from fastmeta.gradients import TaskGradients


class GslWeights(Aggregation):
    """Weights tasks by the gradient similarity loss (GSL) between their gradient and the mean.

    `softmax(-GSL_i / tau)`, the variant "task-weights" (R3) of our reconstruction of GSL (Tak &
    Hong 2024).

    Args:
        rule: `"softmax"` or `"linear"`, see [`fastmeta.ops.gsl_task_weights`][].
        lam_c: weight of the cosine loss.
        lam_2: weight of the L2 loss.
        tau: temperature of the softmax; positive.

    Raises:
        ValueError: if an argument is not a number or out of range.
    """

    def __init__(
        self,
        rule: Literal["softmax", "linear"] = "softmax",
        lam_c: float = 1.0,
        lam_2: float = 0.0,
        tau: float = 1.0,
    ) -> None:
        check_choice("rule", rule, ("softmax", "linear"))
        check_number("lam_c", lam_c)
        check_number("lam_2", lam_2)
        check_positive("tau", tau)
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
