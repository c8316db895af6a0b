"""The engine of all tasks at once: one call of the module for the whole meta-batch."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmeta.engines._chunks import out_of_memory
from fastmeta.engines.base import Engine, Method, Rows, StepResult, UnsuitableError
from fastmeta.functional import Buffers
from fastmeta.metagrad import Episode
from fastmeta.tasks import TaskBatch

# What torch's messages have in common where vmap cannot go on.
_GIVES_UP = ("vmap", "functorch", "Batching rule", "a batched tensor")


class BatchedEngine(Engine):
    """Runs the tasks as one: ``torch.vmap`` of the module and the loss over stacked parameters.

    Parameters and buffers are ``(T, ...)``. Tasks share nothing after the initialisation, so the
    gradient of the *sum* of their losses in the stacked parameters is every task's own, and rooms 1
    and 2 run as they are where they say that they may: see
    :attr:`fastmeta.adaptation.Adaptation.elementwise` and
    :attr:`fastmeta.metagrad.MetaGradient.separable`. Memory grows with the number of tasks: where
    it does not suffice, half as many run at once from then on, and a warning says so (see
    :class:`fastmeta.engines.Chunks`). What a module does besides computing (counting its calls,
    say) happens once, not once a task.

    :meth:`run` raises ``NotImplementedError`` where ``vmap`` cannot run the module or the loss, and
    where random numbers are drawn: dropout's would not be the loop's.
    """

    name = "batched"

    def __init__(self, method: Method, batch: TaskBatch) -> None:
        super().__init__(method, batch)
        _check_rooms(method)
        if method.model.checkpoint:
            raise UnsuitableError("the learner has checkpoint=True")
        for name, buffer in method.model.named_buffers():
            if buffer.layout is not torch.strided:
                raise UnsuitableError(f"the buffer {name} is {buffer.layout}, which cannot stack")

    def run(self, rows: Rows) -> StepResult:
        """See :class:`Engine`."""
        results = self.method.chunks.run(self.batch, lambda part: self._run(part, rows))
        return StepResult(*map(torch.cat, zip(*results, strict=True)))

    def _run(self, batch: TaskBatch, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        method, model, count = self.method, self.method.model, len(batch)
        buffers = {name: _own(b, count) for name, b in model.named_buffers()}
        on_support = partial(model.evaluate, method.loss)
        on_query = partial(model.evaluate_query, method.loss)
        support = _Split(on_support, buffers, batch.support_x, batch.support_y)
        query = _Split(on_query, buffers, batch.query_x, batch.query_y)
        # Copies, too: forward mode refuses expanded tensors, and most kernels would copy them.
        params = [_own(p.detach(), count) for p in model.params]
        # Of torch's attentions on the CPU, only the plain one has a vmap rule; the others loop.
        with _nothing_drawn(), sdpa_kernel(SDPBackend.MATH):
            result = method.metagrad.task(
                Episode(support, query, buffers), params, method.adaptation, method.records_inner
            )
        rows.inner.count = min(rows.inner.count, rows.query.count)  # memory ran out between them
        if result.inner is not None:
            rows.inner.extend(result.inner, count)
        rows.query.extend(result.query, count)
        rows.buffers.extend({name: b[i] for name, b in buffers.items()} for i in range(count))
        first = (support.losses or query.losses)[0]
        return first, query.losses[-1], result.query_output


# Loss and output of one task for parameters, buffers, inputs and targets.
_Evaluate = Callable[[Sequence[Tensor], Buffers, Tensor, Tensor], tuple[Tensor, Tensor]]


class _Split:
    """An :data:`fastmeta.metagrad.base.Evaluate` of all tasks that notes their losses."""

    def __init__(self, evaluate: _Evaluate, buffers: Buffers, x: Tensor, y: Tensor) -> None:
        self.evaluate = evaluate
        self.buffers = buffers
        self.x = x
        self.y = y
        self.losses: list[Tensor] = []

    def __call__(self, params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and the outputs ``(T, n, *output)``."""
        with _explained():
            losses, output = torch.vmap(self.evaluate)(list(params), self.buffers, self.x, self.y)
        if losses.dim() != 1:
            raise RuntimeError(
                f"the loss must be a scalar, got shape {tuple(losses.shape[1:])} for each task. "
                "Average it, such as with reduction='mean'."
            )
        self.losses.append(losses.detach())
        return losses.sum(), output


def _own(tensor: Tensor, count: int) -> Tensor:
    """A copy for every task; it may change its buffers in place."""
    return tensor.expand(count, *tensor.shape).clone(memory_format=torch.contiguous_format)


def _check_rooms(method: Method) -> None:
    # A subclass may override what its base promised: it has to say so itself.
    rooms = ((method.adaptation, "elementwise"), (method.metagrad, "separable"))
    for room, promise in rooms:
        if promise not in vars(type(room)) or not getattr(room, promise):
            raise UnsuitableError(
                f"{type(room).__name__} does not declare {promise} = True in its class body"
            )
    if method.adaptation.rates:
        raise UnsuitableError(
            f"{type(method.adaptation).__name__} learns rates, whose gradients would be summed "
            "over the tasks"
        )


@contextmanager
def _explained() -> Iterator[None]:
    """Says what to do where ``vmap`` gives up."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error)
        if out_of_memory(error):
            raise
        if "random operation" in reason:
            raise NotImplementedError(
                "engine 'batched' cannot run a module or a loss that draws random numbers, such as "
                "dropout in training: they would not be the loop's. Use engine='loop'."
            ) from error
        if any(sign in reason for sign in _GIVES_UP):
            raise NotImplementedError(
                f"engine 'batched' cannot run this module or loss under torch.vmap: {reason} "
                "Use engine='loop'."
            ) from error
        raise


@contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Refuses random numbers that ``vmap`` does not see: Python's and NumPy's."""
    before = _generators()
    yield
    if _generators() != before:
        raise NotImplementedError(
            "engine 'batched' cannot run a module or a loss that draws random numbers: Python's or "
            "NumPy's generator moved, once for all tasks. Use engine='loop'."
        )


def _generators() -> tuple[object, bytes]:
    return random.getstate(), pickle.dumps(np.random.get_state(legacy=False))
