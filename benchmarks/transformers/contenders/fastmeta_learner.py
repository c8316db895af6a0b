"""``fastmeta.MetaLearner`` with inner gradient descent and the mean over tasks."""

from __future__ import annotations

from typing import Any

from benchmarks.transformers.cases import Case
from fastmeta import MetaLearner, TaskBatch
from fastmeta import metagrad as metagrads
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean


def make(
    case: Case, module: Any, batch: Any, *, metagrad: str, checkpoint: Any = False, **options: Any
) -> Any:
    """The meta-gradient of a learner.

    Args:
        case: the case.
        module: its network.
        batch: its tasks.
        metagrad: a class in ``fastmeta.metagrad``.
        checkpoint: of the learner.
        **options: of the meta-gradient.
    """
    learner = MetaLearner(
        module,
        case.loss,
        adaptation=SGD(case.lr, case.steps),
        metagrad=getattr(metagrads, metagrad)(**options),
        aggregation=Mean(),
        checkpoint=checkpoint,
    )
    tasks = TaskBatch(*batch)
    return lambda: [learner.meta_gradient(tasks)[0]]
