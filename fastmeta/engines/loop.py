"""The general engine: one task after the other, by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.engines.base import Engine, Method, Rows, StepResult
from fastmeta.functional import Buffers
from fastmeta.metagrad import Episode
from fastmeta.tasks import Task


class LoopEngine(Engine):
    """Runs any module and any combination of the three rooms."""

    name = "loop"

    def run(self, rows: Rows) -> StepResult:
        """See :class:`Engine`."""
        method = self.method
        model, results = method.model, []
        for task in self.batch:
            own = model.clone_buffers()
            result = method.metagrad.task(
                _episode(method, task, own), model.params, method.adaptation, method.records_inner
            )
            rows.query.append(result.query)
            if result.inner is not None:
                rows.inner.append(result.inner)
            results.append((result.support_loss, result.query_loss, result.query_output))
            rows.buffers.append(own)
        return StepResult(*(torch.stack(part) for part in zip(*results, strict=True)))


def _episode(method: Method, task: Task, buffers: Buffers) -> Episode:
    model, loss = method.model, method.loss

    def support(params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return model.evaluate(loss, params, buffers, task.support_x, task.support_y)

    def query(params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return model.evaluate_query(loss, params, buffers, task.query_x, task.query_y)

    return Episode(support, query, buffers)
