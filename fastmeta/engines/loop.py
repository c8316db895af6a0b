"""The general engine: one task after another, by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation import ClosedForm, fit_task
from fastmeta.engines._head import HeadFinder
from fastmeta.engines._resized import resized_losses
from fastmeta.engines.base import Engine, StepBuffers, StepResult, collect_outputs
from fastmeta.functional import Buffers, Loss
from fastmeta.functional.head import LinearHead
from fastmeta.metagrad import StepContext, TaskLosses
from fastmeta.metagrad.task_losses import Part
from fastmeta.tasks import Examples, MetaBatch, Task, TaskBatch, map_tensors


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
                self.losses(task, own, heads, _ids(batch, i)),
                spec.model.params,
                spec.adaptation,
                replace(context, task=first + i),
            )
            buffers.append(result, own)
            results.append((result.support_loss, result.query_loss, result.query_output))
            del result  # its gradients would take memory, and cache, from the next task
        support, query, outputs = zip(*results, strict=True)
        return StepResult(torch.stack(support), torch.stack(query), collect_outputs(batch, outputs))

    def losses(
        self,
        task: Task[Any, Any],
        buffers: Buffers,
        heads: HeadFinder,
        ids: Tensor | None = None,
    ) -> TaskLosses:
        """The losses of a task, with its own buffers.

        Args:
            task: the task.
            buffers: its copy of the module's buffers.
            heads: finds the last layer.
            ids: `(m,)`, the ids of the task, if they are known.
        """
        model, loss = self.spec.model, self.spec.loss

        def support(params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            return self.spec.evaluate_support(params, buffers, task.support_x, task.support_y)

        def query(params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            return model.evaluate_query(loss, params, buffers, task.query_x, task.query_y)

        def weighted_query(
            params: Sequence[Tensor], weights: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            each: list[Tensor] = []
            weighted = partial(_weighted_mean, loss, weights, each)
            value, output = model.evaluate_query(
                weighted, params, buffers, task.query_x, task.query_y
            )
            return value, output, each[0]

        def with_features(
            head: LinearHead, params: Sequence[Tensor]
        ) -> tuple[Tensor, Tensor, Tensor | None]:
            return model.evaluate_with_features(
                loss, params, buffers, task.support_x, task.support_y, head
            )

        def fit(
            adaptation: ClosedForm, params: Sequence[Tensor]
        ) -> tuple[Sequence[Tensor], Tensor]:
            x, y = task.support_x, task.support_y
            return fit_task(adaptation, model, loss, params, buffers, x, y, create_graph=True)

        find = partial(heads.of, task.support_y, with_features)
        y = task.query_y
        is_labels = isinstance(y, Tensor) and y.dim() == 1 and not y.is_floating_point()
        labels = y if is_labels else None

        def part(of_support: Part, of_query: Part) -> TaskLosses:
            return self.losses(_cut(task, of_support, of_query), buffers, heads, ids)

        return TaskLosses(
            support,
            query,
            buffers,
            head=find,
            weighted_query=weighted_query,
            query_labels=labels,
            ids=ids,
            part=part,
            fit=fit,
            resized=partial(
                resized_losses, lambda other: self.losses(other, buffers, heads, ids), model, task
            ),
        )


def _cut(task: Task[Any, Any], of_support: Part, of_query: Part) -> Task[Any, Any]:
    """One of equal parts of the support and of the query examples."""

    def cut(examples: Examples, part: Part) -> Examples:
        return map_tensors(lambda t: _one_of(t, *part), examples)

    return Task(
        cut(task.support_x, of_support),
        cut(task.support_y, of_support),
        cut(task.query_x, of_query),
        cut(task.query_y, of_query),
    )


def _one_of(examples: Tensor, index: int, parts: int) -> Tensor:
    if len(examples) < parts:
        raise ValueError(
            f"{len(examples)} examples cannot be split into {parts} parts; expected at least one "
            "in each. Draw tasks with more examples."
        )
    return examples.tensor_split(parts)[index]


def _ids(batch: MetaBatch, index: int) -> Tensor | None:
    return batch.ids[index] if isinstance(batch, TaskBatch) and batch.ids is not None else None


def _weighted_mean(
    loss: Loss, weights: Tensor, each: list[Tensor], output: Any, y: Examples
) -> Tensor:
    """The mean of the examples' losses, times their weights; appends these losses to `each`."""
    losses = torch.vmap(lambda o, t: loss(o[None], t[None]))(output, y)
    each.append(losses.detach())
    return (weights.to(losses) * losses).mean()
