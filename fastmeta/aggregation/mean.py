"""Equal weights."""

from __future__ import annotations

from torch import Tensor

from fastmeta.aggregation.base import Aggregation
from fastmeta.gradients import TaskGradients
from fastmeta.reference import accumulation_dtype


class Mean(Aggregation):
    """Equal weights ``1/T``, as in MAML."""

    def weights(self, rows: TaskGradients) -> Tensor:
        """See :meth:`Aggregation.weights`."""
        dtype = accumulation_dtype(rows.query.dtype)
        return rows.query.new_full((rows.tasks,), 1 / rows.tasks, dtype=dtype)
