"""Evaluation of a learner on the query sets of many tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastmeta.data import TaskSource
from fastmeta.distributed import Sharding
from fastmeta.functional import Head
from fastmeta.learners import MetaLearner
from fastmeta.train.metrics import Metric


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """`module.eval()` inside the context."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def task_scores(
    learner: MetaLearner,
    source: TaskSource,
    tasks: int,
    metric: Metric,
    steps: int,
    head: Head = "main",
    sharding: Sharding | None = None,
) -> Tensor:
    """The scores `(tasks,)` of the first `tasks` tasks of a source.

    Args:
        learner: adapts its module to each support set; nothing of it changes.
        source: of tasks; the same source and number give the same tasks.
        tasks: how many, at least 2.
        metric: the score of a task's query outputs.
        steps: inner steps.
        head: whose outputs are scored, see
            [`fastmeta.MetaLearner.predict`][fastmeta.learners.MetaLearner.predict].
        sharding: of the meta-batches over ranks; each rank returns the scores of all.
    """
    rank, size = (0, 1) if sharding is None else (sharding.rank, sharding.size)
    first, scores = source[rank], []
    count = -(-tasks // len(first))
    with evaluation_mode(learner.module):
        for i in range(rank, -(-count // size) * size, size):  # as many on each rank
            batch = first if i == rank else source[i]
            outputs = learner.predict(batch, steps, head)
            scores.append(metric.scores(outputs, batch.query_y))
    found = torch.stack(scores)
    if sharding is not None:
        found = sharding.gather_all(found).transpose(0, 1).flatten(0, 1)
    return found.flatten()[:tasks]
