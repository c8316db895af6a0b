"""The general engine: one task after another, by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.engines.base import Engine, StepBuffers, StepResult
from fastmeta.functional import Buffers
from fastmeta.metagrad import StepContext, TaskLosses
from fastmeta.tasks import Task, TaskBatch


class LoopEngine(Engine):
    """Runs any module and any combination of components."""

    name = "loop"

    @override
    def run(self, batch: TaskBatch, context: StepContext, buffers: StepBuffers) -> StepResult:
        spec, results = self.spec, []
        first = 0 if context.sharding is None else context.sharding.own.start
        for i, task in enumerate(batch):
            own = spec.model.clone_buffers()
            result = spec.metagrad.task(
                self._losses(task, own),
                spec.model.params,
                spec.adaptation,
                replace(context, task=first + i),
            )
            buffers.append(result, own)
            results.append((result.support_loss, result.query_loss, result.query_output))
        return StepResult(*(torch.stack(part) for part in zip(*results, strict=True)))

    def _losses(self, task: Task, buffers: Buffers) -> TaskLosses:
        model, loss = self.spec.model, self.spec.loss

        def support(params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            return model.evaluate(loss, params, buffers, task.support_x, task.support_y)

        def query(params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            return model.evaluate_query(loss, params, buffers, task.query_x, task.query_y)

        return TaskLosses(support, query, buffers)
