"""Losses of a training run as functions of lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional import Buffers
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

    Attributes:
        buffers: their values at present, for `Replay`.
    """

    def __init__(
        self,
        loss: Callable[[Any, Any, Any], Tensor],
        params: Leaves,
        meta: Leaves,
        batches: Sequence[Any],
        before: int,
        buffers: Sequence[Tensor],
    ) -> None:
        self._loss = loss
        self._params = params
        self._meta = meta
        self._batches = batches
        self._before = before
        self._places = buffers
        self.buffers: Buffers = {str(i): b.detach().clone() for i, b in enumerate(buffers)}

    def __call__(self, params: Sequence[Tensor]) -> Tensor:
        """The loss in the current inner step."""
        step = current_step()
        assert step is not None
        batch = self._batches[step - self._before]
        tree, meta = self._params.tree(params), self._meta.tree(self._meta.tensors)
        return scalar("inner_loss", self.with_buffers(lambda: self._loss(tree, meta, batch)))

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


def added(total: Sequence[Tensor | None], more: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The sums; `None` means zero."""
    return [a if b is None else b if a is None else a + b for a, b in zip(total, more, strict=True)]


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
