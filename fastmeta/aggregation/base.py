"""What every aggregation offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from fastmeta.gradients import TaskGradients


class Aggregation(ABC):
    """Task aggregation: how much each task's meta-gradient counts."""

    @property
    def records_inner(self) -> bool:
        """Whether the weights are computed from the mean inner gradients."""
        return False

    @abstractmethod
    def weights(self, rows: TaskGradients) -> Tensor:
        """The task weights ``(T,)`` in the accumulation dtype, on the rows' device."""
