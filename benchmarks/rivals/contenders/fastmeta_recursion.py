"""fastmeta with ``metagrad.Recursion``, a reverse sweep over the inner steps."""

from __future__ import annotations

from typing import Any

from benchmarks.rivals.cases import Case
from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Recursion


def make(case: Case, module: Any, batch: Any) -> Any:
    learner = MetaLearner(
        module,
        case.loss,
        adaptation=SGD(case.lr, case.steps),
        metagrad=Recursion(),
        aggregation=Mean(),
    )
    tasks = TaskBatch(*batch)
    return lambda: [learner.meta_gradient(tasks)[0]]
