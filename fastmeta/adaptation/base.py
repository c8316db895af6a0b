"""What every way of adapting to a task offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

# The support loss as a function of the parameters.
LossFn = Callable[[Sequence[Tensor]], Tensor]


@dataclass
class Adapted:
    """The outcome of the inner loop on one task.

    Attributes:
        fast: the fast weights, in the order of the parameters.
        inner_grads: gradients of each inner step, detached; empty unless they were asked for.
        losses: the support loss before each inner step, detached.
    """

    fast: list[Tensor]
    inner_grads: list[list[Tensor | None]]
    losses: list[Tensor]


class Adaptation(ABC):
    """Inner adaptation: from the initialisation to a task's fast weights.

    Attributes:
        steps: number of inner steps during meta-training.
    """

    steps: int

    @abstractmethod
    def adapt(
        self,
        loss: LossFn,
        params: Sequence[Tensor],
        *,
        steps: int | None = None,
        create_graph: bool = False,
        record: bool = False,
    ) -> Adapted:
        """Runs the inner loop.

        Args:
            loss: the support loss as a function of the parameters.
            params: where to start; not modified.
            steps: inner steps, ``self.steps`` by default.
            create_graph: whether to keep the graph, so that the fast weights can be differentiated
                in ``params``; without it they are leaves that require a gradient.
            record: whether to keep the inner gradients.
        """
