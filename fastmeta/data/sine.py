"""Sine regression tasks."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmeta._checks import check_interval
from fastmeta.data._rng import TaskRNG
from fastmeta.data.task_source import SeededSource
from fastmeta.tasks import TaskBatch


class SineTasks(SeededSource):
    """Meta-batches of regression tasks `y = a * sin(x - p)` (Finn et al., 2017, section 5.1).

    Every task has its own amplitude `a` and phase `p`; these and each `x` are drawn uniformly
    from their ranges. `sines[i]` is a pure function of `(seed, i)`: see
    [`SeededSource`][fastmeta.data.task_source.SeededSource].

    Args:
        tasks: tasks per meta-batch, `T`.
        shots: support points per task, `K`.
        queries: query points per task, `Q`.
        seed: `0 <= seed < 2**64`.
        amplitude: lowest and highest amplitude.
        phase: lowest and highest phase, in radians.
        x: lowest and highest input.
        length: number of meta-batches, or `None` for an infinite source.
        device: device of the meta-batches.

    Each meta-batch has `support_x` and `support_y` `(T, K, 1)`, `query_x` and `query_y`
    `(T, Q, 1)`, all float32.

    Raises:
        ValueError: if a range is not finite or its end is below its start, or if a number is out
            of range.
    """

    ways: int | None = None

    def __init__(
        self,
        tasks: int,
        shots: int,
        queries: int,
        seed: int = 0,
        amplitude: tuple[float, float] = (0.1, 5.0),
        phase: tuple[float, float] = (0.0, math.pi),
        x: tuple[float, float] = (-5.0, 5.0),
        length: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(tasks=tasks, shots=shots, queries=queries, seed=seed, length=length)
        for name, interval in (("amplitude", amplitude), ("phase", phase), ("x", x)):
            check_interval(name, interval)
        self.amplitude = amplitude
        self.phase = phase
        self.x = x
        self.device = torch.device(device)

    def __repr__(self) -> str:
        return f"SineTasks({self._sizes()})"

    def _draw(self, rng: TaskRNG) -> TaskBatch:
        amplitude = rng.uniform(*self.amplitude, (rng.tasks, 1, 1))
        phase = rng.uniform(*self.phase, (rng.tasks, 1, 1))
        x = rng.uniform(*self.x, (rng.tasks, self.shots + self.queries, 1))
        y = amplitude * np.sin(x - phase)
        return TaskBatch(
            support_x=self._tensor(x[:, : self.shots]),
            support_y=self._tensor(y[:, : self.shots]),
            query_x=self._tensor(x[:, self.shots :]),
            query_y=self._tensor(y[:, self.shots :]),
        )

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device)
