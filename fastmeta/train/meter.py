"""Means over meta-steps, kept on the device until they are read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.learners import StepResult
from fastmeta.tasks import TaskBatch
from fastmeta.train.metrics import Metric


class Reading(NamedTuple):
    """Means since the last reading.

    Attributes:
        loss: on query sets, after adaptation.
        score: on query sets, after adaptation.
        tasks_per_second: without pauses.
    """

    loss: float
    score: float
    tasks_per_second: float


class Meter:
    """Adds up loss, score and tasks of meta-steps; only :meth:`read` makes the host wait.

    Args:
        metric: the score.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._sums: Tensor | None = None
        self._tasks = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Speed is measured from now on."""
        self._timed_tasks = 0
        self._since = time.perf_counter()

    def add(self, batch: TaskBatch, result: StepResult) -> None:
        """Counts one meta-step."""
        scores = self._metric.per_task(result.query_output, batch.query_y)
        sums = torch.stack([result.query_loss.double().sum(), scores.double().sum()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._tasks += len(batch)
        self._timed_tasks += len(batch)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here is no training time."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def read(self) -> Reading:
        """The means since the last reading, and a new beginning; at least one step was added."""
        assert self._sums is not None, "nothing was added"
        loss, score = (self._sums / self._tasks).tolist()
        speed = self._timed_tasks / (time.perf_counter() - self._since)
        self._sums, self._tasks = None, 0
        self.restart_clock()
        return Reading(loss, score, speed)

    def state_dict(self) -> dict[str, Any]:
        """The sums, but no clock."""
        return {"sums": None if self._sums is None else self._sums.tolist(), "tasks": self._tasks}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str) -> None:
        """Restores :meth:`state_dict`, with the sums on ``device``."""
        sums = state["sums"]
        self._sums = None if sums is None else torch.tensor(sums, dtype=torch.double, device=device)
        self._tasks = state["tasks"]
        self.restart_clock()
