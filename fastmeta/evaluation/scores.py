"""Evaluation of a learner on the query sets of many tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta._checks import check_integer
from fastmeta.data import TaskSource
from fastmeta.distributed import Sharding
from fastmeta.evaluation.metrics import ACCURACY, MSE, Estimate, Metric, estimate
from fastmeta.functional import Head
from fastmeta.learners import MetaLearner
from fastmeta.tasks import MetaBatch, RaggedTaskBatch, TaskBatch

TASKS = 600  # of a source without an end, as is customary


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation:
    """Scores of a learner on tasks, after adaptation to each.

    Attributes:
        metric: the score.
        scores: `(tasks,)`, one per task.
        steps: inner steps taken; `None`: as in training.
    """

    metric: Metric
    scores: Tensor
    steps: int | None

    @property
    def estimate(self) -> Estimate:
        """Mean, 95 % interval and number of tasks."""
        return estimate(self.scores)

    @property
    def mean(self) -> float:
        """The mean over tasks."""
        return self.estimate.mean

    @property
    def ci95(self) -> float:
        """Half the width of the 95 % interval of the mean, `1.96 * std / sqrt(tasks)`."""
        return self.estimate.ci95

    def __repr__(self) -> str:
        found = self.estimate
        steps = "" if self.steps is None else f", {self.steps} inner step{'s' * (self.steps != 1)}"
        score = self.metric.show(found.mean, found.ci95)
        return f"Evaluation({self.metric.name} {score}, {found.tasks} tasks{steps})"


def evaluate(
    learner: MetaLearner,
    tasks: TaskSource | MetaBatch | Iterable[MetaBatch],
    *,
    count: int | None = None,
    steps: int | None = None,
    metric: Metric | None = None,
    head: Head = "main",
    sharding: Sharding | None = None,
    advance: Callable[[int, int | None], object] | None = None,
) -> Evaluation:
    """Adapts a learner to each task and scores its predictions on the query set.

    The module is in evaluation mode meanwhile; nothing of the learner changes. Losses and outputs
    of one meta-batch: [`MetaLearner.evaluate`][fastmeta.learners.MetaLearner.evaluate].

    Args:
        learner: trained or not.
        tasks: a meta-batch, several, or a source of them such as
            [`fastmeta.data.EpisodeSampler`][].
        count: how many tasks; by default all, or the first 600 of a source without an end.
        steps: inner steps; as in training by default.
        metric: the score; by default accuracy if targets are integers, else the mean squared
            error.
        head: whose outputs are scored, see
            [`fastmeta.MetaLearner.predict`][fastmeta.learners.MetaLearner.predict].
        sharding: of meta-batches of one size over ranks; each rank returns the scores of all.
        advance: called after each meta-batch with the numbers of tasks done and to do; the latter
            is `None` while it is unknown.

    Returns:
        Mean, interval and one score per task.

    Raises:
        ValueError: if there are fewer than two tasks, or fewer than `count`.
    """
    if count is not None:
        check_integer("count", count, 2)
    source, length = _indexed(tasks)
    wanted = TASKS if count is None and length is None else count
    rank, size = (0, 1) if sharding is None else (sharding.rank, sharding.size)
    parts: list[Tensor] = []
    seen, i = 0, rank
    with evaluation_mode(learner.module):
        while (wanted is None or seen < wanted) and (length is None or i < length):
            batch = source[i]
            if metric is None:
                metric = suitable_metric(batch)
            outputs = learner.predict(batch, steps, head)
            parts.append(metric.scores(outputs, batch.query_y))
            seen, i = seen + size * len(batch), i + size
            if advance is not None:
                advance(seen if wanted is None else min(seen, wanted), wanted)
    if metric is None or seen < (wanted or 2):
        raise ValueError(f"expected at least {wanted or 2} tasks; got {seen}.")
    if sharding is None:
        return Evaluation(metric, torch.cat(parts)[:wanted], steps)
    shared = sharding.gather_all(torch.stack(parts)).transpose(0, 1).flatten()
    return Evaluation(metric, shared[:wanted], steps)


def suitable_metric(batch: MetaBatch) -> Metric:
    """Accuracy if the query targets are integers, else the mean squared error.

    Raises:
        TypeError: if they are not tensors.
    """
    targets = batch[0].query_y
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"query_y must hold tensors to be scored; got {type(targets).__name__}. Pass a metric, "
            "or use MetaLearner.evaluate for losses and outputs."
        )
    return MSE if targets.is_floating_point() else ACCURACY


def _indexed(tasks: Any) -> tuple[Any, int | None]:
    """Meta-batches by index, and their number; `None` for a source without an end."""
    if isinstance(tasks, TaskBatch | RaggedTaskBatch):
        return [tasks], 1
    if not hasattr(tasks, "__getitem__"):
        tasks = list(tasks)
    try:
        return tasks, len(tasks)
    except TypeError:
        return tasks, None


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """`module.eval()` inside the context."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
