"""What a trainer draws its meta-batches from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from typing import Protocol

from torch.utils.data import Dataset

from fastmeta._checks import check_integer
from fastmeta.data._rng import Draws, check_seed
from fastmeta.tasks import TaskBatch


class TaskSource(Protocol):
    """Numbered meta-batches: the same number gives the same tasks, in any order and process."""

    @property
    def ways(self) -> int | None:
        """Classes a task, or ``None`` for regression."""

    def __getitem__(self, index: int) -> TaskBatch:
        """Meta-batch number ``index``, from 0."""


class SeededSource(Dataset[TaskBatch], ABC):
    """A :class:`TaskSource` whose meta-batch ``i`` is a pure function of ``(seed, i)``.

    There is no state to save: a run resumes by asking for the next number, and worker processes
    or ranks share the work by asking for different ones, or for :meth:`part` of one. With a
    ``length`` it is also a map-style data set, for
    ``torch.utils.data.DataLoader(source, batch_size=None, num_workers=...)``.

    Args:
        tasks: tasks a meta-batch, ``T``.
        shots: support examples a class (of a regression task: in all).
        queries: query examples a class (of a regression task: in all).
        seed: ``0 <= seed < 2**64``.
        length: how many meta-batches there are, or ``None`` for no end.

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

    @abstractmethod
    def _draw(self, draws: Draws) -> TaskBatch:
        """The ``draws.tasks`` tasks that ``draws`` decides."""

    def __getitem__(self, index: int) -> TaskBatch:
        """Meta-batch number ``index``, from 0.

        Raises:
            IndexError: if ``index`` is negative or not below ``length``.
        """
        return self.part(index, 0, self.tasks)

    def part(self, index: int, start: int, stop: int) -> TaskBatch:
        """``self[index].part(start, stop)``, without drawing the other tasks.

        Raises:
            IndexError: if ``index`` is negative or not below ``length``.
            ValueError: unless ``0 <= start < stop <= tasks``.
        """
        if index < 0 or (self.length is not None and index >= self.length):
            end = "" if self.length is None else f" and less than the length, {self.length}"
            raise IndexError(f"the number of a meta-batch must be at least 0{end}; got {index}.")
        if not 0 <= start < stop <= self.tasks:
            raise ValueError(
                f"expected tasks start to stop with 0 <= start < stop <= {self.tasks}; got "
                f"{start} to {stop}."
            )
        return self._draw(Draws(self.seed, index, range(start, stop), self.tasks))

    def __iter__(self) -> Iterator[TaskBatch]:
        """Meta-batches 0, 1, ...; without a ``length`` for ever."""
        return (self[i] for i in (count() if self.length is None else range(self.length)))

    def __len__(self) -> int:
        """The number of meta-batches.

        Raises:
            TypeError: without a ``length``.
        """
        if self.length is None:
            raise TypeError(
                f"this {type(self).__name__} has no end, so no len(); construct it with length=."
            )
        return self.length
