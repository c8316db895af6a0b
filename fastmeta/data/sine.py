"""Sine regression tasks."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmeta._checks import check_in_range, check_integer, check_interval
from fastmeta.data._rng import TaskRNG
from fastmeta.data.task_source import SeededSource
from fastmeta.tasks import TaskBatch


class SineTasks(SeededSource):
    """Meta-batches of regression tasks `y = a * sin(x - p)` (Finn et al., 2017, section 5.1).

    Every task has its own amplitude `a` and phase `p`; these and each `x` are drawn uniformly
    from their ranges. With a `grid` tasks recur, each time with other points. `sines[i]` is a pure
    function of `(seed, i)`: see [`SeededSource`][fastmeta.data.task_source.SeededSource].

    Args:
        tasks: tasks per meta-batch, `T`.
        shots: support points per task, `K`.
        queries: query points per task, `Q`.
        seed: `0 <= seed < 2**64`.
        amplitude: lowest and highest amplitude.
        phase: lowest and highest phase, in radians.
        x: lowest and highest input.
        grid: numbers of amplitudes and phases, equally spaced from the lowest to the highest: tasks
            are drawn from these combinations, without repetition within a meta-batch, and
            `TaskBatch.ids` `(T, 1)` holds their numbers. By default any are drawn.
        outliers: probability that a task's amplitude is drawn from another range.
        outlier_amplitude: this range.
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
        grid: tuple[int, int] | None = None,
        outliers: float = 0.0,
        outlier_amplitude: tuple[float, float] = (8.0, 12.0),
        length: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(tasks=tasks, shots=shots, queries=queries, seed=seed, length=length)
        ranges = {"amplitude": amplitude, "phase": phase, "x": x}
        for name, interval in {**ranges, "outlier_amplitude": outlier_amplitude}.items():
            check_interval(name, interval)
        check_in_range("outliers", outliers, 0, 1, closed=True)
        if grid is not None:
            _check_grid(grid, tasks, outliers)
        self.amplitude = amplitude
        self.phase = phase
        self.x = x
        self.grid = grid
        self.outliers = outliers
        self.outlier_amplitude = outlier_amplitude
        self.device = torch.device(device)

    def __repr__(self) -> str:
        return f"SineTasks({self._sizes()})"

    def _draw(self, rng: TaskRNG) -> TaskBatch:
        ids, shape = None, (rng.tasks, 1, 1)
        if self.grid is None:
            amplitude = rng.uniform(*self.amplitude, shape)
            phase = rng.uniform(*self.phase, shape)
        else:
            numbers = rng.distinct(math.prod(self.grid))
            ids = torch.from_numpy(numbers)[:, None].to(self.device)
            first, second = divmod(numbers, self.grid[1])
            amplitude = np.linspace(*self.amplitude, self.grid[0])[first].reshape(shape)
            phase = np.linspace(*self.phase, self.grid[1])[second].reshape(shape)
        x = rng.uniform(*self.x, (rng.tasks, self.shots + self.queries, 1))
        if self.outliers:
            unusual = rng.uniform(0, 1, shape) < self.outliers
            amplitude = np.where(unusual, rng.uniform(*self.outlier_amplitude, shape), amplitude)
        y = amplitude * np.sin(x - phase)
        return TaskBatch(
            support_x=self._tensor(x[:, : self.shots]),
            support_y=self._tensor(y[:, : self.shots]),
            query_x=self._tensor(x[:, self.shots :]),
            query_y=self._tensor(y[:, self.shots :]),
            ids=ids,
        )

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device)


def _check_grid(grid: tuple[int, int], tasks: int, outliers: float) -> None:
    for size in grid:
        check_integer("grid", size, 1)
    if math.prod(grid) < tasks:
        raise ValueError(
            f"grid must have at least as many combinations as a meta-batch has tasks, {tasks}; got "
            f"{grid[0]} x {grid[1]}."
        )
    if outliers:
        raise ValueError(f"outliers must be 0 with a grid, whose tasks are fixed; got {outliers}.")
