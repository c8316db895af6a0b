"""The general engine: one task after another, by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.engines._head import HeadFinder
from fastmeta.engines.base import Engine, StepBuffers, StepResult, collect_outputs
from fastmeta.functional import Buffers
from fastmeta.functional.head import LinearHead
from fastmeta.metagrad import StepContext, TaskLosses
from fastmeta.tasks import MetaBatch, Task


class LoopEngine(Engine):
    """Runs any module, any combination of components and tasks of unequal sizes."""

    name = "loop"

    @override
    def run(self, batch: MetaBatch, context: StepContext, buffers: StepBuffers) -> StepResult:
        spec, results = self.spec, []
        heads = HeadFinder(spec)
        first = 0 if context.sharding is None else context.sharding.own.start
        for i, task in enumerate(batch):
            own = spec.model.clone_buffers()
            result = spec.metagrad.task(
                self.losses(task, own, heads),
                spec.model.params,
                spec.adaptation,
                replace(context, task=first + i),
            )
            buffers.append(result, own)
            results.append((result.support_loss, result.query_loss, result.query_output))
            del result  # its gradients would take memory, and cache, from the next task
        support, query, outputs = zip(*results, strict=True)
        return StepResult(torch.stack(support), torch.stack(query), collect_outputs(batch, outputs))

    def losses(self, task: Task[Any, Any], buffers: Buffers, heads: HeadFinder) -> TaskLosses:
        """The losses of a task, with its own buffers."""
        model, loss = self.spec.model, self.spec.loss

        def support(params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            return model.evaluate(loss, params, buffers, task.support_x, task.support_y)

        def query(params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            return model.evaluate_query(loss, params, buffers, task.query_x, task.query_y)

        def with_features(
            head: LinearHead, params: Sequence[Tensor]
        ) -> tuple[Tensor, Tensor, Tensor | None]:
            return model.evaluate_with_features(
                loss, params, buffers, task.support_x, task.support_y, head
            )

        find = partial(heads.of, task.support_y, with_features)
        return TaskLosses(support, query, buffers, find)
