"""Adaptation and prediction on new tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.adaptation import Adapted, run_inner_loop
from fastmeta.engines import StepResult, StepSpec
from fastmeta.engines.base import Outputs, collect_outputs
from fastmeta.functional import Buffers, Head
from fastmeta.functional.outputs import prediction
from fastmeta.tasks import Examples, MetaBatch


def adapt_to_task(
    spec: StepSpec,
    x: Examples,
    y: Examples,
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
    return [t.detach() for t in _adapt(spec, x, y, buffers, steps, head).fast]


def _adapt(
    spec: StepSpec, x: Examples, y: Examples, buffers: Buffers, steps: int | None, head: Head
) -> Adapted:
    model = spec.model

    def support(params: Sequence[Tensor]) -> Tensor:
        if head == "co-learner-alone":
            return model.evaluate_co_learner(spec.loss, params, buffers, x, y)
        return model.evaluate(spec.loss, params, buffers, x, y)[0]

    with torch.enable_grad(), model.planned():
        return run_inner_loop(spec.adaptation, support, model.params, steps=steps)


def evaluate_tasks(spec: StepSpec, batch: MetaBatch, steps: int | None) -> StepResult:
    """Losses and outputs after adaptation, see `fastmeta.MetaLearner.evaluate`."""
    model, before, after, outputs = spec.model, [], [], []
    with model.planned():
        for task in batch:
            buffers = model.clone_buffers()
            adapted = _adapt(spec, task.support_x, task.support_y, buffers, steps, "main")
            with torch.no_grad():
                loss, output = model.evaluate(
                    spec.loss, adapted.fast, buffers, task.query_x, task.query_y
                )
            before.append(adapted.losses[0] if adapted.losses else loss)
            after.append(loss)
            outputs.append(output)
    return StepResult(torch.stack(before), torch.stack(after), collect_outputs(batch, outputs))


def predict_tasks(spec: StepSpec, batch: MetaBatch, steps: int | None, head: Head) -> Outputs:
    """Query outputs after adaptation, see `fastmeta.MetaLearner.predict`."""
    model, outputs = spec.model, []
    with model.planned():
        for task in batch:
            buffers = model.clone_buffers()
            fast = adapt_to_task(spec, task.support_x, task.support_y, buffers, steps, head)
            with torch.no_grad():
                if head == "main":
                    output = model(fast, buffers, task.query_x)
                else:
                    output = model.both(fast, buffers, task.query_x)[1]
                outputs.append(prediction(output))
    return collect_outputs(batch, outputs)
