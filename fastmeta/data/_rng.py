"""Counter-based random numbers, a pure function of (seed, index)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_LIMIT = 2**64


class TaskRNG:
    """The random number generator of one meta-batch.

    Philox is a counter-based generator (Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3", 2011): with `(seed, index)` as its key, every pair has its own stream, independent
    of any earlier draws. Only raw bits are used: NumPy guarantees that these, unlike the
    distributions derived from them, stay the same across versions.

    A subset of the tasks gets the same numbers as within the full meta-batch: the numbers of the
    other tasks are skipped at no cost. Each request must therefore be for the same number of values
    per task, ordered by task.

    Args:
        seed: `0 <= seed < 2**64`.
        index: `0 <= index < 2**64`.
        selected: the tasks to draw for, `0 <= selected.start < selected.stop <= total`.
        total: number of tasks of the full meta-batch.

    Attributes:
        index: of the meta-batch.
        tasks: number of tasks to draw for.
    """

    def __init__(self, seed: int, index: int, selected: range = range(1), total: int = 1) -> None:
        self._key = np.array([seed, index], dtype=np.uint64)
        self.index = index
        self._selected, self._total = selected, total
        self._consumed = 0  # numbers, of all tasks
        self.tasks = len(selected)

    def at(self, index: int) -> TaskRNG:
        """The generator of another meta-batch, for the same tasks in it."""
        return TaskRNG(int(self._key[0]), index, self._selected, self._total)

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Uniform numbers in `[low, high)` of shape `shape`, with 53 random bits each."""
        unit: NDArray[np.float64] = (self._raw(shape) >> np.uint64(11)).astype(np.float64)
        return low + (high - low) * (unit * 2.0**-53)

    def sample(self, populations: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """For each row `r`, `count` numbers of `range(populations[r])` without replacement.

        Every ordered selection is equally likely. The set is drawn by Floyd's algorithm (Bentley
        and Floyd, "A sample of brilliance", 1987), whose cost does not grow with the population,
        for all rows at once; a random permutation then orders it.

        Args:
            populations: `(rows,)`, each at least `count`.
            count: how many numbers to sample.

        Returns:
            `(rows, count)`.
        """
        bounds = populations[:, None] - count + 1 + np.arange(count)
        candidates = self._raw(bounds.shape) % bounds.astype(np.uint64)
        chosen = candidates.astype(np.int64)
        for k in range(1, count):
            taken = (chosen[:, :k] == chosen[:, k, None]).any(axis=1)
            chosen[taken, k] = bounds[taken, k] - 1
        order = np.argsort(self._raw(bounds.shape), axis=1)
        return np.take_along_axis(chosen, order, axis=1)

    def distinct(self, population: int) -> NDArray[np.int64]:
        """For each task another number of `range(population)`, all selections equally likely.

        Args:
            population: at least the number of tasks of the full meta-batch.

        Returns:
            `(tasks,)`.
        """
        # The same numbers whichever tasks are selected.
        order = np.argsort(self._bits(self._consumed, (population,)))
        self._consumed += population
        return order[self._selected.start : self._selected.stop]

    def _raw(self, shape: tuple[int, ...]) -> NDArray[np.uint64]:
        per_task, remainder = divmod(math.prod(shape), self.tasks)
        assert remainder == 0
        begin = self._consumed + per_task * self._selected.start
        self._consumed += per_task * self._total
        return self._bits(begin, shape)

    def _bits(self, begin: int, shape: tuple[int, ...]) -> NDArray[np.uint64]:
        bits = np.random.Philox(key=self._key, counter=begin // 4)  # four numbers per count
        bits.random_raw(begin % 4)
        return bits.random_raw(shape)


def check_seed(seed: int) -> int:
    """Returns `seed` if it is valid.

    Raises:
        ValueError: if it does not fit the generator's key.
    """
    if not 0 <= seed < _LIMIT:
        raise ValueError(f"seed must be at least 0 and less than 2**64; got {seed}.")
    return seed
