"""Adaptation and prediction on new tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.adaptation import ClosedForm, fit_task, run_inner_loop
from fastmeta.engines import StepResult, StepSpec
from fastmeta.engines.base import Outputs, collect_outputs
from fastmeta.functional import Buffers, Head
from fastmeta.functional.outputs import prediction
from fastmeta.functional.predictor import detached
from fastmeta.tasks import Examples, MetaBatch


def adapt_to_task(
    spec: StepSpec,
    x: Examples,
    y: Examples,
    buffers: Buffers,
    steps: int | None,
    head: Head = "main",
) -> Sequence[Tensor]:
    """The detached fast weights for one support set, or the predictor.

    Args:
        spec: the module, the loss and the inner loop.
        x: support inputs, `(n_support, *input)`.
        y: support targets.
        buffers: the task's copy of the module's buffers; updated.
        steps: number of inner steps; as in training by default.
        head: see [`fastmeta.MetaLearner.predict`][fastmeta.learners.MetaLearner.predict].
    """
    return detached(_adapt(spec, x, y, buffers, steps, head)[0])


def _adapt(
    spec: StepSpec, x: Examples, y: Examples, buffers: Buffers, steps: int | None, head: Head
) -> tuple[Sequence[Tensor], Tensor | None]:
    """Fast weights or predictor, and the support loss before the first inner step, if any."""
    model = spec.model

    def support(params: Sequence[Tensor]) -> Tensor:
        if head == "co-learner-alone":
            return model.evaluate_co_learner(spec.loss, params, buffers, x, y)
        return spec.evaluate_support(params, buffers, x, y, meta_training=False)[0]

    with torch.enable_grad(), model.planned():
        if isinstance(adaptation := spec.adaptation, ClosedForm):
            start = [p.detach().requires_grad_() for p in model.params]
            return fit_task(adaptation, model, spec.loss, start, buffers, x, y, create_graph=False)
        adapted = run_inner_loop(adaptation, support, model.params, steps=steps)
        return adapted.fast, adapted.losses[0] if adapted.losses else None


def evaluate_tasks(spec: StepSpec, batch: MetaBatch, steps: int | None) -> StepResult:
    """Losses and outputs after adaptation, see `fastmeta.MetaLearner.evaluate`."""
    model, before, after, outputs = spec.model, [], [], []
    with model.planned():
        for task in batch:
            buffers = model.clone_buffers()
            fast, first = _adapt(spec, task.support_x, task.support_y, buffers, steps, "main")
            with torch.no_grad():
                loss, output = model.evaluate(spec.loss, fast, buffers, task.query_x, task.query_y)
            before.append(loss if first is None else first)
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
