"""Random numbers as a pure function of (seed, index)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_LIMIT = 2**64


class Draws:
    """The random numbers of one meta-batch.

    Philox is a counter-based generator (Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3", 2011): with ``(seed, index)`` as its key, every pair has a stream of its own and none
    depends on what was drawn before. Only raw bits are used: numpy promises these, and not the
    distributions made from them, to stay the same from version to version.

    A part of the tasks has the numbers that it has among all of them: those of the others are
    passed over at no cost. So each request must be for equally many numbers a task, task by task.

    Args:
        seed: ``0 <= seed < 2**64``.
        index: ``0 <= index < 2**64``.
        own: which tasks to draw for, ``0 <= own.start < own.stop <= tasks``.
        tasks: of the whole meta-batch.

    Attributes:
        tasks: how many there are to draw for.
    """

    def __init__(self, seed: int, index: int, own: range = range(1), tasks: int = 1) -> None:
        self._key = np.array([seed, index], dtype=np.uint64)
        self._own, self._all = own, tasks
        self._passed = 0  # numbers, of all tasks
        self.tasks = len(own)

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Numbers of ``[low, high)`` in ``shape``, with 53 random bits each."""
        unit: NDArray[np.float64] = (self._raw(shape) >> np.uint64(11)).astype(np.float64)
        return low + (high - low) * (unit * 2.0**-53)

    def distinct(self, populations: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """``count`` distinct numbers of ``range(populations[r])`` for each row ``r``.

        Every ordered selection is equally likely. The set is made by Floyd's algorithm (Bentley
        and Floyd, "A sample of brilliance", 1987), whose cost does not grow with the population,
        for all rows at once; a random permutation then orders it.

        Args:
            populations: ``(rows,)``, each at least ``count``.
            count: how many numbers to choose.

        Returns:
            ``(rows, count)``.
        """
        bounds = populations[:, None] - count + 1 + np.arange(count)
        candidates = self._raw(bounds.shape) % bounds.astype(np.uint64)
        chosen = candidates.astype(np.int64)
        for k in range(1, count):
            taken = (chosen[:, :k] == chosen[:, k, None]).any(axis=1)
            chosen[taken, k] = bounds[taken, k] - 1
        order = np.argsort(self._raw(bounds.shape), axis=1)
        return np.take_along_axis(chosen, order, axis=1)

    def _raw(self, shape: tuple[int, ...]) -> NDArray[np.uint64]:
        each, rest = divmod(math.prod(shape), self.tasks)
        assert rest == 0
        begin = self._passed + each * self._own.start
        self._passed += each * self._all
        bits = np.random.Philox(key=self._key, counter=begin // 4)  # makes four numbers at a time
        bits.random_raw(begin % 4)
        return bits.random_raw(shape)


def check_seed(seed: int) -> int:
    """``seed`` itself.

    Raises:
        ValueError: if it does not fit the generator's key.
    """
    if not 0 <= seed < _LIMIT:
        raise ValueError(f"seed must be at least 0 and less than 2**64; got {seed}.")
    return seed
