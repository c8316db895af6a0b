"""Base class of task aggregations."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from fastmeta.gradients import TaskGradients


class Aggregation(ABC):
    """Task aggregation: the weight of each task's meta-gradient."""

    @property
    def needs_support_gradients(self) -> bool:
        """Whether the weights are computed from the mean support gradients."""
        return False

    @abstractmethod
    def weights(self, gradients: TaskGradients) -> Tensor:
        """The task weights ``(T,)`` in the accumulation dtype, on the gradients' device.

        Args:
            gradients: the tasks' meta-gradients. Where :attr:`TaskGradients.finite` is given, the
                others are left out: their gradients are zero, and the weights must be those of the
                meta-batch without them, without waiting for the device.
        """
