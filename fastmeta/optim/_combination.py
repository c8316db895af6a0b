"""The combination of marked tasks by a meta-gradient and an aggregation."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.aggregation import Aggregation, Mean
from fastmeta.gradients import FlatLayout, TaskGradients
from fastmeta.metagrad import GSL, MetaGradient, Reptile, StepContext
from fastmeta.optim._marked_tasks import MarkedTasks
from fastmeta.optim.recorder import Grads, TaskRecorder


class Combination:
    """What a loop's task gradients are combined to, and the state between its meta-steps.

    The tasks are combined after each of them, but states and random numbers advance once per
    `commit`.

    Args:
        metagrad: the meta-gradient.
        aggregation: the task weights.

    Attributes:
        step: meta-steps taken.
        state: of the meta-gradient.
        tasks: the tasks marked since the last meta-step.
    """

    def __init__(self, metagrad: MetaGradient, aggregation: Aggregation) -> None:
        self.metagrad = metagrad
        self.aggregation = aggregation
        self.step = 0
        self.state: dict[str, Tensor] = {}
        self.tasks = MarkedTasks()
        self._next_state: dict[str, Tensor] = {}
        self._generator: tuple[Tensor, Tensor] | None = None  # before and after the last draws

    @property
    def similarity(self) -> GSL | None:
        """The similarity loss of support gradients with a graph, if there is one."""
        metagrad = self.metagrad
        return metagrad if isinstance(metagrad, GSL) and not metagrad.is_first_order else None

    @property
    def needs_support(self) -> bool:
        """Whether the tasks' mean support gradients are used."""
        return self.metagrad.needs_support_gradients or self.aggregation.needs_support_gradients

    @property
    def marks(self) -> bool:
        """Whether `.grad` as the loop accumulates it is not the meta-gradient."""
        reptile = isinstance(self.metagrad, Reptile)
        return self.needs_support or reptile or type(self.aggregation) is not Mean

    def context(self, layout: FlatLayout) -> StepContext:
        """The current meta-step."""
        return StepContext(
            layout,
            len(layout.shapes),
            self.step,
            record_support=self.needs_support,
            state=dict(self.state),
            precision=self.tasks.precision if self.tasks.scales else None,
        )

    def add(self, params: list[Tensor], task: TaskRecorder, before: Grads, query: Grads) -> Grads:
        """Adds a task and returns the new `.grad`.

        Args:
            params: the trainable parameters.
            task: the task.
            before: `.grad` before it.
            query: its query gradient.

        Raises:
            RuntimeError: if a gradient is missing, or as `MarkedTasks.others`.
            ValueError: if the aggregation weights the tasks and their scales differ.
        """
        others = self.tasks.others(params, before)
        support = task.mean_support if self.needs_support else None
        if self.needs_support and support is None:
            raise RuntimeError(
                f"{self._names} compares support gradients, but task {len(self.tasks.scales)} has "
                "none. Call task.support(grads) after each inner step, or task.adapted(...), or "
                "use task.inner_gradients(loss) or task.record()."
            )
        if isinstance(self.metagrad, Reptile):
            outer, divisor = self._displacement(task), 1.0
        else:
            outer, divisor = query, task.scale
        if all(g is None for g in outer):
            raise RuntimeError(
                f"task {len(self.tasks.scales)} has no query gradient, but {self._names} combines "
                "the gradients of single tasks; expected backward() of its query loss in the block."
            )
        scales = [*self.tasks.scales, task.scale]
        if type(self.aggregation) is not Mean and len(set(scales)) > 1:
            raise ValueError(
                f"aggregation.{type(self.aggregation).__name__} weights the tasks itself: expected "
                f"one scale for all of them, got {scales}. Use opt.task(scale=1 / len(tasks)), or "
                "aggregation.Mean."
            )
        self.tasks.append(params, outer, support, task.scale, divisor)
        return self.tasks.write(self._combine(), others)

    def commit(self) -> None:
        """Ends the meta-step: advances state and random numbers, discards the tasks."""
        self.step += 1
        if self.tasks.scales:
            self.state = self._next_state
            # Unless the loop has advanced the generator since.
            if self._generator and torch.equal(torch.get_rng_state(), self._generator[0]):
                torch.set_rng_state(self._generator[1])
        self.tasks.discard()

    @property
    def _names(self) -> str:
        return (
            f"metagrad.{type(self.metagrad).__name__} with "
            f"aggregation.{type(self.aggregation).__name__}"
        )

    def _displacement(self, task: TaskRecorder) -> Grads:
        displacement = task.displacement
        if displacement is None:
            raise RuntimeError(
                "metagrad.Reptile needs the displacement of the inner loop, but task "
                f"{len(self.tasks.scales)} has none. Call task.adapted(fast, inner_lr, steps), or "
                "use opt.task(inner_lr=...) and task.inner_gradients(loss)."
            )
        return displacement

    def _combine(self) -> list[Tensor]:
        """The meta-gradient of the tasks so far, per parameter."""
        tasks, generator = self.tasks, torch.get_rng_state()
        context = self.context(tasks.outer.layout)
        support = tasks.support.filled if self.needs_support else None
        found = self.metagrad.combine(TaskGradients(tasks.outer.filled, support), {}, context)
        weights = self.aggregation.weights(found)
        # Filled one by one: a copy from the host would synchronise with the GPU.
        scales = torch.cat([weights.new_full((1,), scale) for scale in tasks.scales])
        weights = scales if type(self.aggregation) is Mean else weights * len(scales) * scales
        self._next_state = context.state
        self._generator = generator, torch.get_rng_state()
        torch.set_rng_state(generator)
        return tasks.outer.layout.views(found.combine(weights))
