"""What every meta-gradient offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from fastmeta.adaptation import Adaptation, Adapted
from fastmeta.functional import Buffers
from fastmeta.gradients import GradientBuffer, TaskGradients

# Loss and outputs of one split ("support" or "query") as a function of the parameters.
Evaluate = Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Episode:
    """One task as a meta-gradient sees it.

    Attributes:
        support: loss and outputs on the support set for given parameters.
        query: loss and outputs on the query set for given parameters.
        buffers: the task's own, which both read and update; replacing an entry takes effect.
    """

    support: Evaluate
    query: Evaluate
    buffers: Buffers = field(default_factory=dict)


@dataclass(frozen=True)
class TaskGradient:
    """What one task contributes to a meta-step; all tensors detached.

    Attributes:
        query: the row of the task, one tensor a parameter, then one a learned rate (``None``, or
            the rates left out, mean zero).
        inner: the mean inner gradient, if it was recorded.
        support_loss: before the first inner step.
        query_loss: after adaptation.
        query_output: outputs on the query set, ``(n_query, ...)``.
    """

    query: Sequence[Tensor | None]
    inner: Sequence[Tensor | None] | None
    support_loss: Tensor
    query_loss: Tensor
    query_output: Tensor

    @classmethod
    def of(
        cls,
        query: Sequence[Tensor | None],
        adapted: Adapted,
        loss: Tensor,
        output: Tensor,
        record: bool,
    ) -> TaskGradient:
        """The row ``query`` with what the inner loop and the query pass have seen.

        Raises:
            ValueError: if inner gradients are to be recorded and there was no inner step.
        """
        return cls(
            query=query,
            inner=mean_grads(adapted.inner_grads) if record else None,
            support_loss=adapted.losses[0] if adapted.losses else loss.detach(),
            query_loss=loss.detach(),
            query_output=output.detach(),
        )


class Shares(Protocol):
    """Tasks shared out over ranks, as by :class:`fastmeta.distributed.Sharding`."""

    tasks: int

    @property
    def own(self) -> slice:
        """The tasks of this rank."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""


class MetaGradient(ABC):
    """The direction in which the initialisation moves, for each task and then for all rows.

    Attributes:
        separable: whether :meth:`task` also takes ``T`` tasks as one: parameters and buffers
            stacked to ``(T, *shape)``, an episode with the *sum* of the tasks' losses and stacked
            outputs; and returns in ``query`` and ``inner`` the tasks' own, stacked. Its support
            loss must be the episode's first, its query loss the last. True for what is made of
            gradients, updates and linear combinations; norms or products over a parameter are not.
            Not inherited (a subclass may change that): a class that is says so in its own body.
        second_order: whether gradients of gradients are taken.
        sharding: of the tasks over ranks, set by the learner. What is learned from all tasks of a
            meta-batch together must be a sum over ranks, see ``mean_over_tasks``.
    """

    separable: ClassVar[bool] = False
    second_order: ClassVar[bool] = False
    sharding: Shares | None = None

    @property
    def records_inner(self) -> bool:
        """Whether the rows need the mean inner gradient."""
        return False

    @abstractmethod
    def task(
        self, episode: Episode, params: Sequence[Tensor], adaptation: Adaptation, record: bool
    ) -> TaskGradient:
        """Adapts to one task and differentiates; ``record`` asks for the mean inner gradient."""

    def rows(self, query: GradientBuffer, inner: GradientBuffer | None) -> TaskGradients:
        """The meta-gradients of all tasks, once their rows are filled."""
        return TaskGradients(query.filled, None if inner is None else inner.filled)

    def state_dict(self) -> dict[str, Any]:
        """What must survive a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, got {', '.join(state)}.")


def mean_over_tasks(total: Tensor, count: int, sharding: Shares | None) -> Tensor:
    """The mean over all tasks of a meta-batch, from the sum over the ``count`` that are here."""
    return total / count if sharding is None else sharding.sum(total) / sharding.tasks


def require_inner_steps(steps: int) -> None:
    """Refuses to compare inner gradients where there are none.

    Raises:
        ValueError: if there was no inner step.
    """
    if not steps:
        raise ValueError(
            "this combination compares inner (support) gradients, but the inner loop took no step; "
            "expected at least one inner step."
        )


def mean_grads(steps: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """The mean over inner steps of each parameter's gradient; ``None`` counts as zero.

    Raises:
        ValueError: if there was no inner step.
    """
    require_inner_steps(len(steps))
    means: list[Tensor | None] = []
    for grads in zip(*steps, strict=True):
        known = [g for g in grads if g is not None]
        total = None if not known else known[0]
        for grad in known[1:]:
            total = total + grad
        means.append(total if total is None or len(steps) == 1 else total / len(steps))
    return means
