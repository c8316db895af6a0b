"""Base class of task aggregations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastmeta.gradients import TaskGradients


class Aggregation(ABC):
    """Task aggregation: the weights of the tasks' meta-gradients in their sum.

    An object holds options only. Its state between meta-steps is in `TaskGradients.state`, so that
    learners may share an object.
    """

    @property
    def needs_support_gradients(self) -> bool:
        """Whether the weights are computed from the mean support gradients."""
        return False

    @property
    def needs_losses(self) -> bool:
        """Whether the weights are computed from the query losses, `TaskGradients.losses`."""
        return False

    @property
    def state_names(self) -> tuple[str, ...]:
        """The entries that `weights` keeps in `TaskGradients.state`; none by default."""
        return ()

    @abstractmethod
    def weights(self, gradients: TaskGradients) -> Tensor:
        """The task weights `(T,)` in the accumulation dtype, on the gradients' device.

        Args:
            gradients: the tasks' meta-gradients. If `TaskGradients.finite` is given, the
                other tasks are left out: their gradients are zero, and the weights must be those of
                the meta-batch without them, without a host sync.
        """

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Checks that a saved `TaskGradients.state` belongs to this aggregation.

        Raises:
            ValueError: if it does not.
        """
        unknown = sorted(set(state) - set(self.state_names))
        if unknown:
            raise ValueError(
                f"the saved state has {', '.join(unknown)}, which "
                f"aggregation.{type(self).__name__} does not have. Load it into a learner with the "
                "aggregation that it was saved with."
            )
