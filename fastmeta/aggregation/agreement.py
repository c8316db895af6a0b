"""Gradient Agreement."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta.aggregation.base import Aggregation
from fastmeta.gradients import TaskGradients


class GradientAgreement(Aggregation):
    """``w_i = <g_i, sum_j g_j> / sum_k |<g_k, sum_j g_j>|``.

    Eshratifar et al. 2018, "Gradient Agreement as an Optimization Objective for Meta-Learning",
    section 2. Weights may be negative; their absolute values sum to one.

    Args:
        of: which gradients must agree: ``"inner"``, the paper's choice, the displacement of the
            inner loop (its scale cancels); ``"meta"``, the meta-gradients that are then summed.

    Raises:
        ValueError: if ``of`` is neither.
    """

    def __init__(self, of: Literal["inner", "meta"] = "inner") -> None:
        if of not in ("inner", "meta"):
            raise ValueError(f"of must be 'inner' or 'meta', got {of!r}.")
        self.of = of

    @property
    @override
    def needs_support_gradients(self) -> bool:
        return self.of == "inner"

    @override
    def weights(self, gradients: TaskGradients) -> Tensor:
        stats = gradients.mean_similarity(support=self.of == "inner")
        return ops.agreement_weights(stats, gradients.finite)
