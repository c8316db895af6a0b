"""Sources of meta-batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from typing import Protocol

from torch.utils.data import Dataset

from fastmeta._checks import check_integer
from fastmeta.data._rng import TaskRNG, check_seed
from fastmeta.tasks import TaskBatch


class TaskSource(Protocol):
    """Indexed meta-batches: an index gives the same tasks in any order and any process."""

    @property
    def ways(self) -> int | None:
        """Classes per task, or `None` for regression."""

    def __getitem__(self, index: int) -> TaskBatch:
        """Meta-batch `index`, from 0."""


class SeededSource(Dataset[TaskBatch], ABC):
    """A `TaskSource` whose meta-batch `i` is a pure function of `(seed, i)`.

    There is no state to save: a resumed run continues at the next index, and worker processes or
    ranks share the work by using different indices, or a `part` of a meta-batch each. With a
    `length` it is also a map-style dataset, for
    `torch.utils.data.DataLoader(source, batch_size=None, num_workers=...)`.

    Args:
        tasks: tasks per meta-batch, `T`.
        shots: support examples per class (for regression: per task).
        queries: query examples per class (for regression: per task).
        seed: `0 <= seed < 2**64`.
        length: number of meta-batches, or `None` for an infinite source.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self, *, tasks: int, shots: int, queries: int, seed: int, length: int | None
    ) -> None:
        sizes = {"tasks": tasks, "shots": shots, "queries": queries}
        if length is not None:
            sizes["length"] = length
        for name, size in sizes.items():
            check_integer(name, size, 1)
        self.tasks = tasks
        self.shots = shots
        self.queries = queries
        self.seed = check_seed(seed)
        self.length = length

    def _sizes(self) -> str:
        """The numbers of tasks and examples, for `repr`."""
        length = "" if self.length is None else f", length={self.length}"
        sizes = f"shots={self.shots}, queries={self.queries}, tasks={self.tasks}, seed={self.seed}"
        return sizes + length

    @abstractmethod
    def _draw(self, rng: TaskRNG) -> TaskBatch:
        """Draws `rng.tasks` tasks."""

    def __getitem__(self, index: int) -> TaskBatch:
        """Meta-batch `index`, from 0.

        Raises:
            IndexError: if `index` is negative or not below `length`.
        """
        return self.part(index, 0, self.tasks)

    def part(self, index: int, start: int, stop: int) -> TaskBatch:
        """`self[index].part(start, stop)`, without drawing the other tasks.

        Raises:
            IndexError: if `index` is negative or not below `length`.
            ValueError: unless `0 <= start < stop <= tasks`.
        """
        if index < 0 or (self.length is not None and index >= self.length):
            end = "" if self.length is None else f" and less than the length, {self.length}"
            raise IndexError(f"the index of a meta-batch must be at least 0{end}; got {index}.")
        if not 0 <= start < stop <= self.tasks:
            raise ValueError(
                f"start and stop must satisfy 0 <= start < stop <= {self.tasks}; got "
                f"{start} to {stop}."
            )
        return self._draw(TaskRNG(self.seed, index, range(start, stop), self.tasks))

    def __iter__(self) -> Iterator[TaskBatch]:
        """Meta-batches 0, 1, ...; without a `length`, indefinitely."""
        return (self[i] for i in (count() if self.length is None else range(self.length)))

    def __len__(self) -> int:
        """The number of meta-batches.

        Raises:
            TypeError: without a `length`.
        """
        if self.length is None:
            raise TypeError(
                f"an infinite {type(self).__name__} has no len(). Construct it with length=."
            )
        return self.length
