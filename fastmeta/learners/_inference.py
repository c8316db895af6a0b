"""Adaptation and prediction on new tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.adaptation import run_inner_loop
from fastmeta.engines import StepSpec
from fastmeta.functional import Buffers, Head
from fastmeta.tasks import TaskBatch


def adapt_to_task(
    spec: StepSpec,
    x: Tensor,
    y: Tensor,
    buffers: Buffers,
    steps: int | None,
    head: Head = "main",
) -> list[Tensor]:
    """The detached fast weights for one support set.

    Args:
        spec: the module, the loss and the inner loop.
        x: support inputs, `(n_support, *input)`.
        y: support targets.
        buffers: the task's copy of the module's buffers; updated.
        steps: number of inner steps; as in training by default.
        head: see [`fastmeta.MetaLearner.predict`][fastmeta.learners.MetaLearner.predict].
    """
    model = spec.model

    def support(params: Sequence[Tensor]) -> Tensor:
        if head == "co-learner-alone":
            return model.evaluate_co_learner(spec.loss, params, buffers, x, y)
        return model.evaluate(spec.loss, params, buffers, x, y)[0]

    with torch.enable_grad(), model.planned():
        fast = run_inner_loop(spec.adaptation, support, model.params, steps=steps).fast
    return [t.detach() for t in fast]


def predict_tasks(spec: StepSpec, batch: TaskBatch, steps: int | None, head: Head) -> Tensor:
    """Query outputs after adaptation, see `fastmeta.MetaLearner.predict`."""
    model, outputs = spec.model, []
    with model.planned():
        for task in batch:
            buffers = model.clone_buffers()
            fast = adapt_to_task(spec, task.support_x, task.support_y, buffers, steps, head)
            with torch.no_grad():
                if head == "main":
                    outputs.append(model(fast, buffers, task.query_x))
                else:
                    outputs.append(model.both(fast, buffers, task.query_x)[1])
    return torch.stack(outputs)
