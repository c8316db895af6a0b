"""Tasks and meta-batches, which samplers yield and learners consume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Task(NamedTuple):
    """One task (episode): support and query sets, without a task dimension."""

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor


@dataclass(frozen=True)
class TaskBatch:
    """A meta-batch of `T` tasks of equal size.

    Attributes:
        support_x: `(T, n_support, *input)`, floating point or integer ids (of tokens or nodes),
            never cast.
        support_y: `(T, n_support)` int64 class indices `0..ways-1`, or
            `(T, n_support, *output)` floating point for regression.
        query_x: `(T, n_query, *input)`, of the dtype of `support_x`.
        query_y: `(T, n_query)` int64, or `(T, n_query, *output)` floating point.

    Raises:
        ValueError: if the four tensors differ in `T`, inputs and targets in their number, or a
            support or query set has no examples.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __post_init__(self) -> None:
        for split in ("support", "query"):
            x: Tensor = getattr(self, f"{split}_x")
            y: Tensor = getattr(self, f"{split}_y")
            if x.dim() < 2 or y.dim() < 2 or x.shape[:2] != y.shape[:2]:
                raise ValueError(
                    f"{split}_x and {split}_y must both begin with (tasks, examples); got "
                    f"{tuple(x.shape)} and {tuple(y.shape)}. Add a leading task dimension "
                    "with unsqueeze(0) for a single task."
                )
            if x.shape[1] == 0:
                raise ValueError(
                    f"{split}_x must hold at least one example per task; got {tuple(x.shape)}."
                )
        if self.support_x.shape[0] != self.query_x.shape[0]:
            raise ValueError(
                f"support and query must have equally many tasks; got {self.support_x.shape[0]} "
                f"support tasks and {self.query_x.shape[0]} query tasks."
            )

    def __len__(self) -> int:
        return self.support_x.shape[0]

    def __getitem__(self, index: int) -> Task:
        return Task(
            self.support_x[index], self.support_y[index], self.query_x[index], self.query_y[index]
        )

    def __iter__(self) -> Iterator[Task]:
        return (self[i] for i in range(len(self)))

    def part(self, start: int, stop: int) -> TaskBatch:
        """The tasks `start` to `stop` (exclusive), as views."""
        return TaskBatch(
            self.support_x[start:stop],
            self.support_y[start:stop],
            self.query_x[start:stop],
            self.query_y[start:stop],
        )

    def to(self, device: torch.device | str) -> TaskBatch:
        """The same meta-batch on `device`."""
        return TaskBatch(
            self.support_x.to(device),
            self.support_y.to(device),
            self.query_x.to(device),
            self.query_y.to(device),
        )
