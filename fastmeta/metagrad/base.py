"""Base class of meta-gradients, and the types of its arguments and results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastmeta.adaptation import Adaptation, Adapted
from fastmeta.distributed import Sharding
from fastmeta.gradients import FlatLayout, TaskGradients
from fastmeta.metagrad.task_losses import TaskLosses


@dataclass(frozen=True)
class StepContext:
    """The meta-step that a meta-gradient is computed in; the learner creates one per meta-step.

    Attributes:
        layout: of the packed gradients: the trainable parameters, then the learned rates.
        num_params: number of tensors in the layout that are parameters rather than learned rates.
        step: number of meta-steps before this one.
        tasks: number of tasks of the meta-batch over all ranks.
        task: index of the task in the meta-batch over all ranks, for
            [`MetaGradient.task`][fastmeta.metagrad.MetaGradient.task].
        record_support: whether the tasks' mean support gradients are needed.
        prepared: what [`MetaGradient.prepare`][fastmeta.metagrad.MetaGradient.prepare] returned.
        state: what the meta-gradient keeps between meta-steps, by name; owned and saved by the
            learner. Only [`MetaGradient.combine`][fastmeta.metagrad.MetaGradient.combine] writes to
            it.
        sharding: of the tasks over ranks, if there are several.
        precision: the dtype that gradients are computed in: that of the parameters, or that of
            autocast; `None` if unknown.
    """

    layout: FlatLayout
    num_params: int
    step: int = 0
    tasks: int = 1
    task: int = 0
    record_support: bool = False
    prepared: Any = None
    state: dict[str, Tensor] = field(default_factory=dict)
    sharding: Sharding | None = None
    precision: torch.dtype | None = None

    @property
    def param_bounds(self) -> tuple[int, ...]:
        """`FlatLayout.bounds` of the parameters alone."""
        return self.layout.bounds[: self.num_params + 1]

    def mean_over_tasks(self, total: Tensor, count: int | Tensor) -> Tensor:
        """The mean over all tasks of a meta-batch, from the sum over the `count` on this rank."""
        if self.sharding is None:
            return total / count
        if isinstance(count, int):
            return self.sharding.sum(total) / self.sharding.tasks
        return self.sharding.sum(total) / self.sharding.sum(count.clone()).clamp(min=1)


@dataclass(frozen=True)
class TaskGradient:
    """Meta-gradient, losses and outputs of one task; all tensors are detached.

    Attributes:
        outer: the task's meta-gradient (before
            [`MetaGradient.combine`][fastmeta.metagrad.MetaGradient.combine]), one tensor per
            parameter, then one per learned rate; `None` and omitted rates mean zero.
        support: the mean support gradient over the inner steps, if it was recorded.
        support_loss: before the first inner step.
        query_loss: after adaptation.
        query_output: outputs on the query set, `(n_query, ...)`.
        extras: further tensors for
            [`MetaGradient.combine`][fastmeta.metagrad.MetaGradient.combine], by name.
    """

    outer: Sequence[Tensor | None]
    support: Sequence[Tensor | None] | None
    support_loss: Tensor
    query_loss: Tensor
    query_output: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        outer: Sequence[Tensor | None],
        adapted: Adapted,
        loss: Tensor,
        output: Tensor,
        context: StepContext,
    ) -> TaskGradient:
        """Combines the meta-gradient `outer` with results of the inner loop and the query pass.

        Raises:
            ValueError: if support gradients are recorded and there was no inner step.
        """
        return cls(
            outer=outer,
            support=mean_grads(adapted.inner_grads) if context.record_support else None,
            support_loss=adapted.losses[0] if adapted.losses else loss.detach(),
            query_loss=loss.detach(),
            query_output=output.detach(),
        )


class MetaGradient(ABC):
    """Meta-gradient: computed per task, then combined over the meta-batch.

    An object holds options only. Its state between meta-steps is in `StepContext.state`, so
    that learners may share an object.

    Attributes:
        task_batchable: whether `task` also handles `T` stacked tasks: parameters and
            buffers of shape `(T, *shape)`, losses that are the *sum* of the tasks' losses,
            stacked outputs; it then returns stacked gradients. The support loss must be evaluated
            first, the query loss last. Computations made of gradients, updates and linear
            combinations qualify; norms or inner products over a parameter do not. Not inherited (a
            subclass may change that): each class declares it in its own body.
        state_names: the entries that `combine` keeps in `StepContext.state`.
    """

    task_batchable: bool = False
    state_names: ClassVar[tuple[str, ...]] = ()

    @property
    def second_order(self) -> bool:
        """Whether gradients of gradients are computed."""
        return False

    @property
    def needs_support_gradients(self) -> bool:
        """Whether `combine` uses the mean support gradients."""
        return False

    @property
    def has_query_loss(self) -> bool:
        """Whether it is a gradient of the query loss, which can have further terms."""
        return True

    @property
    def closed_form(self) -> bool:
        """Whether `task` runs adaptations in closed form, which have no inner gradients."""
        return False

    def checkpointed(self) -> MetaGradient | None:
        """This meta-gradient in a form that needs less memory with activation checkpointing.

        A first-order one as it is; by default there is no such form of others: the graph of their
        second derivatives keeps the recomputed activations.
        """
        return None if self.second_order else self

    def prepare(self, params: Sequence[Tensor], names: Sequence[str]) -> Any:
        """What [`task`][fastmeta.metagrad.MetaGradient.task] needs to know of a network.

        Called when a learner is built and when parameters were frozen or unfrozen since; passed on
        as `StepContext.prepared`. Nothing by default.

        Args:
            params: the trainable parameters.
            names: of the parameters in the module.

        Raises:
            ValueError: if the network does not suit the options.
        """
        return None

    @abstractmethod
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        """Adapts to one task and computes its meta-gradient.

        Args:
            losses: the task.
            params: the initialisation.
            adaptation: the inner loop.
            context: the meta-step.
        """

    def combine(
        self, gradients: TaskGradients, extras: Mapping[str, Tensor], context: StepContext
    ) -> TaskGradients:
        """The final meta-gradients of all tasks, from the results of `task`.

        Called once per meta-step.

        Args:
            gradients: `TaskGradient.outer` and `support` of this rank's tasks.
            extras: `TaskGradient.extras` of the tasks, stacked to `(T, ...)`; zero for
                tasks that are left out.
            context: the meta-step.
        """
        return gradients

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Checks that a saved `StepContext.state` belongs to this meta-gradient.

        Raises:
            ValueError: if it does not.
        """
        unknown = sorted(set(state) - set(self.state_names))
        if unknown:
            raise ValueError(
                f"the saved state has {', '.join(unknown)}, which metagrad.{type(self).__name__} "
                "does not have. Load it into a learner with the meta-gradient that it was saved "
                "with."
            )


def require_inner_steps(steps: int) -> None:
    """Rejects an inner loop without steps, which has no support gradients.

    Raises:
        ValueError: if there was no inner step.
    """
    if not steps:
        raise ValueError(
            "this combination compares support gradients, but the inner loop took no step; "
            "expected at least one inner step."
        )


def mean_grads(steps: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """The mean over inner steps of each parameter's gradient; `None` counts as zero.

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
