"""The engine that runs all tasks at once under `torch.vmap`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation.base import is_task_batchable
from fastmeta.engines._chunks import Chunks, out_of_memory
from fastmeta.engines._head import HeadFinder
from fastmeta.engines._host_rng import reject_host_rng
from fastmeta.engines.base import RAGGED, Engine, StepBuffers, StepResult, StepSpec
from fastmeta.functional import Buffers, twice_differentiable
from fastmeta.functional.head import LinearHead
from fastmeta.metagrad import StepContext, TaskLosses
from fastmeta.tasks import Examples, MetaBatch, TaskBatch

# Substrings of torch's messages for failures of vmap.
_VMAP_FAILURES = ("vmap", "functorch", "Batching rule", "a batched tensor")


class BatchedEngine(Engine):
    """Runs all tasks at once: `torch.vmap` of the module and the loss over stacked parameters.

    Parameters and buffers are `(T, ...)`. After the initialisation tasks are independent, so the
    gradient of the *sum* of their losses with respect to the stacked parameters consists of their
    own gradients, and adaptation and meta-gradient run unchanged if they declare support for it:
    see `fastmeta.adaptation.Adaptation.task_batchable` and
    `fastmeta.metagrad.MetaGradient.task_batchable`. Memory grows with the number of tasks:
    if it runs out, half as many run at once from then on, and a warning says so. Side effects of a
    module (such as counting its calls) happen once, not once per task.

    `run` raises `NotImplementedError` if `vmap` does not support the module or the loss,
    or if random numbers are drawn, which (as in dropout) would differ from those of the loop.
    """

    name = "batched"

    def __init__(self, spec: StepSpec) -> None:
        super().__init__(spec)
        self.chunks = Chunks()

    @override
    def unsuitable(self, batch: MetaBatch) -> str | None:
        if not isinstance(batch, TaskBatch):
            return RAGGED
        model = self.spec.model
        if model.checkpoint:
            return "the learner has checkpoint=True"
        for name, buffer in model.named_buffers():
            if buffer.layout is not torch.strided:
                return f"the buffer {name} is {buffer.layout}, which cannot be stacked"
        return _unsuitable_component(self.spec)

    @override
    def run(self, batch: MetaBatch, context: StepContext, buffers: StepBuffers) -> StepResult:
        assert isinstance(batch, TaskBatch)
        results = self.chunks.run(batch, lambda part: self._run(part, context, buffers))
        return StepResult(*map(torch.cat, zip(*results, strict=True)))

    def _run(
        self, batch: TaskBatch[Any, Any], context: StepContext, buffers: StepBuffers
    ) -> tuple[Tensor, Tensor, Tensor]:
        spec, model, count = self.spec, self.spec.model, len(batch)
        stacked = {name: _stack_copies(b, count) for name, b in model.named_buffers()}
        on_query = partial(model.evaluate_query, spec.loss)
        support = _StackedTasks(spec.evaluate_support, stacked, batch.support_x, batch.support_y)
        query = _StackedTasks(on_query, stacked, batch.query_x, batch.query_y)

        def with_features(
            head: LinearHead, params: Sequence[Tensor]
        ) -> tuple[Tensor, Tensor, Tensor | None]:
            return support.with_features(
                partial(model.evaluate_with_features, spec.loss, head=head), params
            )

        find = partial(HeadFinder(spec).of, batch.support_y, with_features)
        # Copies as well: forward mode rejects expanded tensors, and most kernels would copy them.
        params = [_stack_copies(p.detach(), count) for p in model.params]
        # On the CPU torch's fused attention has no batching rule and would loop.
        with reject_host_rng(self.name, "all tasks"), twice_differentiable(attention_only=True):
            result = spec.metagrad.task(
                TaskLosses(support, query, stacked, find), params, spec.adaptation, context
            )
        done = buffers.outer.count
        # Drop what a chunk left that ran out of memory between the two buffers.
        buffers.support.count = min(buffers.support.count, done)
        if result.support is not None:
            buffers.support.extend(result.support, count)
        buffers.outer.extend(result.outer, count)
        buffers.module_buffers.extend(
            {name: b[i] for name, b in stacked.items()} for i in range(count)
        )
        support_loss = (support.losses or query.losses)[0]
        return support_loss, query.losses[-1], result.query_output


# Loss and output of one task for parameters, buffers, inputs and targets.
_Evaluate = Callable[[Sequence[Tensor], Buffers, Examples, Examples], tuple[Tensor, Tensor]]


class _StackedTasks:
    """An `fastmeta.metagrad.task_losses.Evaluate` of stacked tasks that records their losses."""

    def __init__(self, evaluate: _Evaluate, buffers: Buffers, x: Examples, y: Examples) -> None:
        self.evaluate = evaluate
        self.buffers = buffers
        self.x = x
        self.y = y
        self.losses: list[Tensor] = []

    def __call__(self, params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and the outputs `(T, n, *output)`."""
        loss, output = self._run(self.evaluate, params)
        return loss, output

    def with_features(
        self,
        evaluate: Callable[..., tuple[Tensor, Tensor, Tensor | None]],
        params: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same with the features of `evaluate`, `(T, n, d)`, or `None`."""

        def present(*args: Any) -> tuple[Tensor, ...]:  # vmap returns tensors only
            return tuple(part for part in evaluate(*args) if part is not None)

        loss, output, *features = self._run(present, params)
        return loss, output, features[0] if features else None

    def _run(
        self, evaluate: Callable[..., tuple[Tensor, ...]], params: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        in_dims = (0, 0, 0, None if self.y is None else 0)
        with _explain_vmap_errors():
            losses, *others = torch.vmap(evaluate, in_dims)(
                list(params), self.buffers, self.x, self.y
            )
        self.losses.append(losses.detach())
        return losses.sum(), *others


def _stack_copies(tensor: Tensor, count: int) -> Tensor:
    """One copy per task, which may change its buffers in place."""
    return tensor.expand(count, *tensor.shape).clone(memory_format=torch.contiguous_format)


def _unsuitable_component(spec: StepSpec) -> str | None:
    # A subclass may override what its base class relies on, so it must declare this itself.
    for component in (spec.adaptation, spec.metagrad):
        if not is_task_batchable(component):
            name = type(component).__name__
            return f"{name} does not declare task_batchable = True in its class body"
    if spec.adaptation.rates:
        return (
            f"{type(spec.adaptation).__name__} learns rates, whose gradients would be summed over "
            "the tasks"
        )
    return None


@contextmanager
def _explain_vmap_errors() -> Iterator[None]:
    """Adds advice to errors of `vmap`."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error)
        if out_of_memory(error):
            raise
        if "random operation" in reason:
            raise NotImplementedError(
                "engine 'batched' cannot run a module or a loss that draws random numbers, such as "
                "dropout in training: they would differ from the loop's. Use engine='loop'."
            ) from error
        if any(sign in reason for sign in _VMAP_FAILURES):
            raise NotImplementedError(
                f"engine 'batched' cannot run this module or loss under torch.vmap: {reason} "
                "Use engine='loop'."
            ) from error
        raise
