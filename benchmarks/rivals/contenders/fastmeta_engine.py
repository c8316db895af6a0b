"""fastmeta with default options: ``MAML`` or ``FOMAML``."""

from __future__ import annotations

from typing import Any

from benchmarks.rivals.cases import Case
from fastmeta import FOMAML, MAML, TaskBatch


def make(case: Case, module: Any, batch: Any) -> Any:
    method = MAML if case.order == 2 else FOMAML
    learner = method(module, case.loss, inner_lr=case.lr, inner_steps=case.steps)
    tasks = TaskBatch(*batch)
    return lambda: [learner.meta_gradient(tasks)[0]]
