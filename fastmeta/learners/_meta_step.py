"""The meta-gradients of the tasks of a meta-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastmeta.distributed import ShardedTaskGradients
from fastmeta.engines import StepResult
from fastmeta.functional._buffers import merge_buffers
from fastmeta.gradients import TaskGradients
from fastmeta.metagrad import StepContext
from fastmeta.tasks import MetaBatch

if TYPE_CHECKING:
    from fastmeta.learners.learner import MetaLearner


def task_gradients(learner: MetaLearner, batch: MetaBatch) -> tuple[TaskGradients, StepResult]:
    """Runs the tasks and combines their results, without the aggregation.

    Args:
        learner: whose buffers, state and count of meta-steps change.
        batch: the tasks.

    Returns:
        The tasks' meta-gradients, in memory that the next call reuses; losses and outputs.
    """
    current, sharding, guard = learner._current(), learner.sharding, learner.non_finite_guard
    spec, model, buffers = current.spec, current.spec.model, current.buffers
    buffers.clear()
    context = StepContext(
        buffers.outer.layout,
        len(model.params),
        learner.steps_taken,
        len(batch) if sharding is None else sharding.tasks,
        record_support=spec.needs_support_gradients,
        prepared=current.prepared,
        state=learner._state,
        sharding=sharding,
        precision=model.precision,
    )
    engine = current.engines.select(batch)
    with model.planned():
        result = engine.run(batch, context, buffers)
    training = learner.module.training
    with torch.no_grad():
        finite = guard.mask_tasks(buffers, result)
        if training and any(buffers.module_buffers):
            merge_buffers(model.named_buffers(), buffers.module_buffers, guard.finite)
        support = buffers.support.filled if context.record_support else None
        found = TaskGradients(buffers.outer.filled, support, finite=finite)
        found = spec.metagrad.combine(found, buffers.stacked_extras(), context)
        found = found.with_losses(result.query_loss, learner._aggregation_state)
    learner.steps_taken += 1
    if sharding is None:
        return found, result
    if training:
        sharding.merge_buffers([buffer for _, buffer in model.named_buffers()])
    return ShardedTaskGradients(found, sharding), result
