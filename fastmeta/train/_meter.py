"""Running means over meta-steps, kept on the device until they are read."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.distributed import Sharding
from fastmeta.evaluation import Metric
from fastmeta.learners import StepResult
from fastmeta.tasks import MetaBatch


class Reading(NamedTuple):
    """Means since the last reading.

    Attributes:
        loss: on query sets, after adaptation.
        score: on query sets, after adaptation.
        tasks_per_second: training speed, without pauses.
        skipped: non-finite tasks, which are left out of both means.
    """

    loss: float
    score: float
    tasks_per_second: float
    skipped: int


class Meter:
    """Accumulates loss, score and tasks of meta-steps; only `read` synchronizes the host.

    Args:
        metric: the score.
        sharding: of the tasks over ranks, on which reading and saving are collective operations.
    """

    def __init__(self, metric: Metric, sharding: Sharding | None = None) -> None:
        self._metric = metric
        self._sharding = sharding
        self._sums: Tensor | None = None
        self._tasks = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restarts the measurement of speed."""
        self._timed_tasks = 0
        self._since = time.perf_counter()

    def add(self, batch: MetaBatch, result: StepResult, finite: Tensor | None) -> None:
        """Counts one meta-step; `finite`: `fastmeta.learners.NonFiniteGuard.finite`."""
        scores = self._metric.scores(result.query_output, batch.query_y)
        seen = torch.stack([result.query_loss.double(), scores.double()])
        skipped = seen.new_zeros(1, len(batch))
        if finite is not None:
            seen, skipped = torch.where(finite, seen, 0), (~finite).to(skipped)[None]
        sums = torch.cat([seen, skipped]).sum(1)
        self._sums = sums if self._sums is None else self._sums + sums
        tasks = len(batch) if self._sharding is None else self._sharding.tasks
        self._tasks += tasks
        self._timed_tasks += tasks

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside the context from the speed."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def read(self) -> Reading:
        """The means since the last reading, which are then reset; at least one step was added.

        They are NaN if no task was finite.
        """
        sums = self._pooled()
        assert sums is not None, "nothing was added"
        loss, score, skipped = sums.tolist()
        counted = self._tasks - skipped or math.nan
        speed = self._timed_tasks / (time.perf_counter() - self._since)
        self._sums, self._tasks = None, 0
        self.restart_clock()
        return Reading(loss / counted, score / counted, speed, int(skipped))

    def state_dict(self) -> dict[str, Any]:
        """The sums over all ranks, without the clock."""
        sums = self._pooled()
        return {"sums": None if sums is None else sums.tolist(), "tasks": self._tasks}

    def _pooled(self) -> Tensor | None:
        if self._sums is None or self._sharding is None:
            return self._sums
        return self._sharding.sum(self._sums.clone())

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str) -> None:
        """Restores `state_dict`, with the sums on `device`."""
        sums = state["sums"]
        if sums is not None:
            sums = torch.tensor(sums, dtype=torch.double, device=device)
            if self._sharding is not None and self._sharding.rank > 0:
                sums.zero_()  # the first rank keeps those of all ranks
        self._sums = sums
        self._tasks = state["tasks"]
        self.restart_clock()
