"""Base class of engines, and the types of their arguments and results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from fastmeta.adaptation import Adaptation
from fastmeta.aggregation import Aggregation
from fastmeta.functional import Buffers, FunctionalModule, Loss
from fastmeta.gradients import GradientBuffer
from fastmeta.metagrad import MetaGradient, StepContext, TaskGradient
from fastmeta.tasks import Examples, MetaBatch, RaggedTaskBatch

ENGINES = ("auto", "loop", "batched", "mlp", "sequence", "compiled")
"""Values of the option `engine`."""
EngineName = Literal["auto", "loop", "batched", "mlp", "sequence", "compiled"]
# Why an engine that stacks tasks cannot run these.
RAGGED = "it is a RaggedTaskBatch, whose tasks may differ in size"
# A tensor, or a list of tensors for tasks of unequal sizes. `Any`, because most programs have tasks
# of equal sizes and would need a cast.
Outputs: TypeAlias = "Tensor | Any"


@dataclass(frozen=True)
class StepResult:
    """Losses and outputs of one meta-step; detached tensors on the device, without a host sync.

    Attributes:
        support_loss: `(T,)`, before the first inner step.
        query_loss: `(T,)`, after adaptation; includes the co-learner's, if any, times `gamma`.
        query_output: `(T, n_query, *output)`, after adaptation; a list of the tasks' outputs for a
            [`RaggedTaskBatch`][fastmeta.RaggedTaskBatch]. Of modules that do not return a tensor,
            the `logits` of their output; without these, the first tensor in it that is not its
            `loss`.
    """

    support_loss: Tensor
    query_loss: Tensor
    query_output: Outputs

    def __repr__(self) -> str:
        losses = (loss.mean().item() for loss in (self.support_loss, self.query_loss))
        before, after = (f"{loss:.4g}" for loss in losses)
        tasks = len(self.query_loss)
        return f"StepResult({tasks} tasks, support loss {before}, query loss {after})"


@dataclass(frozen=True)
class StepSpec:
    """Module, loss and components of a meta-step.

    Attributes:
        model: the module as a function of its parameters.
        loss: a scalar function of the module's output and the targets.
        adaptation: the inner loop.
        metagrad: the meta-gradient.
        aggregation: the task weights.
    """

    model: FunctionalModule
    loss: Loss
    adaptation: Adaptation
    metagrad: MetaGradient
    aggregation: Aggregation

    def evaluate_support(
        self,
        params: Sequence[Tensor],
        buffers: Buffers,
        x: Examples,
        y: Examples,
        meta_training: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Loss and outputs of an inner step on one task, see `fastmeta.adaptation.SupportLoss`."""
        chosen = self.adaptation.support_loss
        if chosen is None:
            return self.model.evaluate(self.loss, params, buffers, x, y)
        return chosen.evaluate(self.model, self.loss, params, buffers, x, y, meta_training)

    @property
    def needs_support_gradients(self) -> bool:
        """Whether a meta-step needs the mean support gradients."""
        return self.metagrad.needs_support_gradients or self.aggregation.needs_support_gradients


def collect_outputs(batch: MetaBatch, outputs: Sequence[Tensor]) -> Outputs:
    """The tasks' outputs, stacked if the tasks have equal sizes."""
    return list(outputs) if isinstance(batch, RaggedTaskBatch) else torch.stack(tuple(outputs))


class StepBuffers:
    """Results of the tasks, filled by an engine in task order; their memory is reused.

    Attributes:
        outer: the meta-gradients.
        support: the mean support gradients; empty unless they are recorded.
        module_buffers: the module's buffers after each task, if it has any.
        extras: further tensors for [`fastmeta.metagrad.MetaGradient.combine`][], by name.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.outer = GradientBuffer(params)
        self.support = GradientBuffer(params)
        self.module_buffers: list[Buffers] = []
        self.extras: dict[str, list[Tensor]] = {}

    def clear(self) -> None:
        """Removes all tasks, keeps the memory of the gradients."""
        self.outer.clear()
        self.support.clear()
        self.module_buffers = []
        self.extras = {}

    def append(self, result: TaskGradient, module_buffers: Buffers) -> None:
        """Adds one task."""
        self.outer.append(result.outer)
        if result.support is not None:
            self.support.append(result.support)
        self.module_buffers.append(module_buffers)
        for name, extra in result.extras.items():
            self.extras.setdefault(name, []).append(extra)

    def stacked_extras(self) -> dict[str, Tensor]:
        """`extras`, `(T, ...)` each."""
        return {name: torch.stack(parts) for name, parts in self.extras.items()}


class Engine(ABC):
    """Runs all tasks of a meta-batch; a learner builds it once for a set of trainable parameters.

    Args:
        spec: the module and the components of a meta-step.
    """

    name: str

    def __init__(self, spec: StepSpec) -> None:
        self.spec = spec

    def unsuitable(self, batch: MetaBatch) -> str | None:
        """Why this engine cannot run these tasks, or `None` if it can.

        Asked before every `run`: a module may change between two meta-batches.
        """
        return None

    @abstractmethod
    def run(self, batch: MetaBatch, context: StepContext, buffers: StepBuffers) -> StepResult:
        """Runs the tasks and fills the buffers in task order; does not change the module.

        Args:
            batch: tasks that this engine is suitable for.
            context: the meta-step.
            buffers: empty buffers to fill.
        """
