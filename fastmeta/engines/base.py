"""What every engine is given, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from fastmeta.adaptation import Adaptation
from fastmeta.aggregation import Aggregation
from fastmeta.engines._chunks import Chunks
from fastmeta.functional import Buffers, FunctionalModule
from fastmeta.gradients import GradientBuffer
from fastmeta.metagrad import MetaGradient
from fastmeta.tasks import TaskBatch

Loss = Callable[[Tensor, Tensor], Tensor]
ENGINES = ("auto", "loop", "batched", "mlp")
"""What the option ``engine`` may be."""
EngineName = Literal["auto", "loop", "batched", "mlp"]


@dataclass(frozen=True)
class StepResult:
    """What one meta-step saw; detached tensors on the device, so that reading costs no sync.

    Attributes:
        support_loss: ``(T,)``, before the first inner step.
        query_loss: ``(T,)``, after adaptation; with a co-learner's, times ``gamma``.
        query_output: ``(T, n_query, *output)``, after adaptation.
    """

    support_loss: Tensor
    query_loss: Tensor
    query_output: Tensor


@dataclass(frozen=True)
class Method:
    """A module and what is to be computed for it: the three rooms.

    Attributes:
        model: the module as a function of its parameters.
        loss: from outputs and targets to a scalar.
        adaptation: room 1.
        metagrad: room 2.
        aggregation: room 3.
        chunks: how many tasks the batched engine runs at once, from one step to the next.
    """

    model: FunctionalModule
    loss: Loss
    adaptation: Adaptation
    metagrad: MetaGradient
    aggregation: Aggregation
    chunks: Chunks = field(default_factory=Chunks)

    @property
    def records_inner(self) -> bool:
        """Whether a step needs the mean inner gradients."""
        return self.metagrad.records_inner or self.aggregation.records_inner


class Rows(NamedTuple):
    """Where an engine writes what the tasks leave, task after task.

    Attributes:
        query: the meta-gradients.
        inner: the mean inner gradients; stays empty unless they are recorded.
        buffers: the module's buffers after each task, if it has any.
    """

    query: GradientBuffer
    inner: GradientBuffer
    buffers: list[Buffers]

    @classmethod
    def of(cls, params: Sequence[Tensor]) -> Rows:
        """Empty rows for gradients in ``params``."""
        return cls(GradientBuffer(params), GradientBuffer(params), [])

    def clear(self) -> None:
        """Forgets all but the memory of the rows."""
        for part in self:
            part.clear()


class UnsuitableError(Exception):
    """Why an engine cannot run a meta-batch; :func:`fastmeta.engines.choose` acts on it."""


class Engine(ABC):
    """Runs all tasks of one meta-batch.

    Raises:
        UnsuitableError: if it cannot run the method on these tasks.
    """

    name: str

    def __init__(self, method: Method, batch: TaskBatch) -> None:
        self.method = method
        self.batch = batch

    @abstractmethod
    def run(self, rows: Rows) -> StepResult:
        """Fills the rows, which are empty, task after task; the module stays as it is."""
