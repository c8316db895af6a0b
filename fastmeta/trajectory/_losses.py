"""Losses of a training run as functions of lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastmeta.adaptation import LossFn
from fastmeta.functional import Buffers
from fastmeta.gradients.sums import added
from fastmeta.inner_step import at_step, current_step
from fastmeta.trajectory._trees import Leaves


class InnerLosses:
    """The inner loss of each step, whose buffers are kept by name.

    Args:
        loss: of parameters, meta-parameters and batch.
        params: the initial parameters.
        meta: the meta-parameters.
        batches: one per inner step.
        before: number of inner steps before these.
        buffers: tensors that the loss changes in place.
        micro_batches: number of equal parts of each batch.

    Attributes:
        buffers: their values at present, for `Replay`.
        parts: functions of the parameters whose sum is the loss, one per micro-batch.
    """

    def __init__(
        self,
        loss: Callable[[Any, Any, Any], Tensor],
        params: Leaves,
        meta: Leaves,
        batches: Sequence[Any],
        before: int,
        buffers: Sequence[Tensor],
        micro_batches: int = 1,
    ) -> None:
        self._loss = loss
        self._params = params
        self._meta = meta
        self._batches = batches
        self._before = before
        self._places = buffers
        self._batch: tuple[int, Any] = (-1, None)
        self.parts: list[LossFn] = [partial(self._part, k) for k in range(micro_batches)]
        self.buffers: Buffers = {str(i): b.detach().clone() for i, b in enumerate(buffers)}

    def __call__(self, params: Sequence[Tensor]) -> Tensor:
        """The loss in the current inner step; with several parts its gradient has no graph."""
        if len(self.parts) == 1:
            return self._part(0, params)
        value: Tensor = _Accumulated.apply(self.parts, *params)  # type: ignore[no-untyped-call]
        return value

    def _part(self, number: int, params: Sequence[Tensor]) -> Tensor:
        tree, meta = self._params.tree(params), self._meta.tree(self._meta.tensors)
        batch = self._current_batch()
        if len(self.parts) > 1:
            batch = micro_batch(batch, number, len(self.parts))
        found = self.with_buffers(lambda: self._loss(tree, meta, batch))
        value = scalar("inner_loss", found)
        return value if len(self.parts) == 1 else value / len(self.parts)

    def _current_batch(self) -> Any:
        step = current_step()
        assert step is not None
        index = step - self._before
        if self._batch[0] != index:
            self._batch = (-1, None)  # frees it before the next one is read
            self._batch = (index, self._batches[index])
        return self._batch[1]

    def with_buffers(self, evaluate: Callable[[], Tensor]) -> Tensor:
        """A loss that reads and changes the buffers."""
        self.write_buffers()
        value = evaluate()
        for name, place in zip(self.buffers, self._places, strict=True):
            self.buffers[name] = place.detach().clone()
        return value

    @torch.no_grad()
    def write_buffers(self) -> None:
        """Writes the present values of the buffers into the user's tensors."""
        for value, place in zip(self.buffers.values(), self._places, strict=True):
            place.copy_(value)


class _Accumulated(torch.autograd.Function):
    """A sum of losses whose gradients are computed one after another."""

    @staticmethod
    def forward(ctx: Any, parts: Sequence[LossFn], *params: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[1:]
        leaves = [p.detach().requires_grad_(w) for p, w in zip(params, wanted, strict=True)]
        inputs = [p for p in leaves if p.requires_grad]
        total: list[Tensor | None] = [None] * len(inputs)
        values = []
        for part in parts:
            with torch.enable_grad():
                value = part(leaves)
            if inputs and value.requires_grad:
                total = added(total, torch.autograd.grad(value, inputs, allow_unused=True))
            values.append(value.detach())
        found = iter(total)
        ctx.grads = [next(found) if w else None for w in wanted]
        return torch.stack(values).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> Any:
        return None, *(None if g is None else scale * g for g in ctx.grads)


def micro_batch(batch: Any, number: int, count: int) -> Any:
    """One of `count` equal parts of a batch, along the first dimension of its tensors.

    Raises:
        ValueError: if a tensor cannot be divided.
    """

    def part(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        if len(leaf) % count:
            raise ValueError(
                f"micro_batches={count} must divide the first dimension of every tensor in a "
                f"batch; got shape {tuple(leaf.shape)}."
            )
        return leaf.unflatten(0, (count, -1))[number]

    return tree_map(part, batch)


class OuterLosses:
    """The outer losses along a run, and their derivatives.

    Args:
        loss: of parameters and meta-parameters, and a batch if there are several.
        params: the initial parameters.
        meta: the meta-parameters.
        batches: by number of inner steps; `None` for one loss at the end, without a batch.
        inner: the inner losses, which use the same buffers.

    Attributes:
        values: the losses, by number of inner steps.
        meta: derivatives with respect to the meta-parameters.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        params: Leaves,
        meta: Leaves,
        batches: Mapping[int, Any] | None,
        inner: InnerLosses,
    ) -> None:
        self._loss = loss
        self._params = params
        self._leaves = meta
        self._batches = batches
        self._inner = inner
        self.values: dict[int, Tensor] = {}
        self.meta: list[Tensor | None] = [None] * len(meta.tensors)

    def gradient(self, step: int, params: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Derivatives with respect to `params`; those of the meta-parameters are added up."""
        tree, meta = self._params.tree(params), self._leaves.tree(self._leaves.tensors)
        rest = () if self._batches is None else (self._batches[step],)
        with at_step(None):
            found = self._inner.with_buffers(lambda: self._loss(tree, meta, *rest))
        value = scalar("outer_loss", found)
        self.values[step] = value.detach()
        leaves = [*params, *self._leaves.tensors]
        if not value.requires_grad:
            return [None] * len(params)
        grads = torch.autograd.grad(value, leaves, allow_unused=True)
        self.meta = added(self.meta, grads[len(params) :])
        return grads[: len(params)]


def scalar(name: str, value: Any) -> Tensor:
    """The value of a loss.

    Raises:
        ValueError: if it is no tensor with one element.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must return a scalar tensor; got {got}.")
    return value.reshape(())


def check_outer_steps(batches: Mapping[int, Any] | None, first: int, last: int) -> None:
    """Rejects outer losses outside of the part of a run that is differentiated.

    Raises:
        ValueError: in that case, or if there are none.
    """
    if batches is None:
        return
    if not batches:
        raise ValueError("outer_batches holds no batch; expected at least one, or None.")
    for step in batches:
        if not isinstance(step, int) or not first <= step <= last:
            raise ValueError(
                f"outer_batches has the key {step!r}; expected numbers of inner steps from {first} "
                f"to {last}{', the steps that are differentiated' if first else ''}."
            )
