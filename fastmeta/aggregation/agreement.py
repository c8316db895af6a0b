"""Gradient Agreement."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_choice
from fastmeta.aggregation.base import Aggregation
from fastmeta.gradients import TaskGradients


class GradientAgreement(Aggregation):
    """Weights tasks by the inner product of their gradient with the sum of all gradients.

    `w_i = <g_i, sum_j g_j> / sum_k |<g_k, sum_j g_j>|`, Eshratifar et al. 2018, "Gradient
    Agreement as an Optimization Objective for Meta-Learning", section 2. Weights may be negative;
    their absolute values sum to one.

    Args:
        of: the gradients that are compared: `"inner"`, the paper's choice, the displacement of
            the inner loop (its scale cancels); `"meta"`, the meta-gradients that are summed.

    Raises:
        ValueError: if `of` is neither.
    """

    def __init__(self, of: Literal["inner", "meta"] = "inner") -> None:
        check_choice("of", of, ("inner", "meta"))
        self.of = of

    @property
    @override
    def needs_support_gradients(self) -> bool:
        return self.of == "inner"

    @override
    def weights(self, gradients: TaskGradients) -> Tensor:
        stats = gradients.mean_similarity(support=self.of == "inner")
        return ops.agreement_weights(stats, gradients.finite)
