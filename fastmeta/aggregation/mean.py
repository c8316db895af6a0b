"""Equal weights."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from fastmeta.aggregation.base import Aggregation
from fastmeta.gradients import TaskGradients
from fastmeta.reference import accumulation_dtype


class Mean(Aggregation):
    """Equal weights `1/T`, as in MAML."""

    @override
    def weights(self, gradients: TaskGradients) -> Tensor:
        dtype = accumulation_dtype(gradients.outer.dtype)
        if gradients.finite is None:
            tasks = gradients.tasks
            return gradients.outer.new_full((tasks,), 1 / tasks, dtype=dtype)
        finite = gradients.finite.to(dtype)
        return finite / finite.sum().clamp(min=1)
