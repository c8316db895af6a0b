"""Base class of task aggregations."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from fastmeta.gradients import TaskGradients


class Aggregation(ABC):
    """Task aggregation: the weights of the tasks' meta-gradients in their sum."""

    @property
    def needs_support_gradients(self) -> bool:
        """Whether the weights are computed from the mean support gradients."""
        return False

    @abstractmethod
    def weights(self, gradients: TaskGradients) -> Tensor:
        """The task weights `(T,)` in the accumulation dtype, on the gradients' device.

        Args:
            gradients: the tasks' meta-gradients. If `TaskGradients.finite` is given, the
                other tasks are left out: their gradients are zero, and the weights must be those of
                the meta-batch without them, without a host sync.
        """
