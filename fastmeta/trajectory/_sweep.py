"""The reverse sweep of a training run, with respect to parameters and meta-parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta.adaptation import Cotangents, InnerStep, LossFn
from fastmeta.gradients.sums import added
from fastmeta.trajectory._losses import OuterLosses
from fastmeta.trajectory.hvp import PRODUCTS, Hvp, hvp_of_graph
from fastmeta.trajectory.replay import Replay


class MetaSweep:
    """From the derivatives after an inner step to those before it.

    Args:
        replay: repeats the inner losses.
        parts: functions of the parameters whose sum is the inner loss.
        outer: the outer losses.
        others: the meta-parameters.
        along: inner steps before which there is an outer loss.
        before: number of inner steps before the run.
        exact: whether the inner gradients are differentiated with respect to the parameters.
        hvp: see `metagradient`.

    Attributes:
        meta: derivatives with respect to the meta-parameters through the inner losses.
    """

    def __init__(
        self,
        replay: Replay,
        parts: Sequence[LossFn],
        outer: OuterLosses,
        others: Sequence[Tensor],
        along: Mapping[int, Any],
        before: int,
        exact: bool,
        hvp: Hvp,
    ) -> None:
        self._replay = replay
        self._parts = parts
        self._outer = outer
        self._others = others
        self._along = along
        self._before = before
        self._exact = exact
        self._hvp = hvp
        self.meta: list[Tensor | None] = [None] * len(others)

    @property
    def has_gradients(self) -> bool:
        """Whether each step's gradients are computed in the sweep, with the graph it needs."""
        differentiated = self._exact or len(self._others) > 0
        return self._hvp == "reverse" and len(self._parts) == 1 and differentiated

    def at_end(self, step: int, params: Sequence[Tensor]) -> Sequence[Tensor]:
        """The derivatives of the outer loss after the last inner step."""
        grads: Sequence[Tensor | None] = [None] * len(params)
        if step in self._along or not self._along:
            grads = self._outer.gradient(step, params)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]

    def through(self, step: InnerStep, back: Cotangents) -> Sequence[Tensor]:
        """See `reverse_sweep`."""
        number, own = step.number - self._before, step.params if self._exact else []
        v: list[Tensor | None] = list(back.params)
        if number in self._along:
            with self._replay.returned_to(self._replay.before(step.number)):
                v = added(v, self._outer.gradient(number, step.params))
        if step.grads is not None:  # with their graph
            self._replay.drop(step.number)
            found = hvp_of_graph(step.grads, [*own, *self._others], back.grads)
            return self._add(v, found[: len(own)], found[len(own) :])
        if not own and not self._others:
            self._replay.drop(step.number)
            return self._add(v, [], [])
        with self._replay.repeat(step.number):
            for part in self._parts:
                loss, count = self._replay.from_here(part), len(step.params)
                found = PRODUCTS[self._hvp](loss, step.params, back.grads, self._others)
                v = [*self._add(v, found[: len(own)], found[count:])]
        return [t for t in v if t is not None]

    def _add(
        self, v: Sequence[Tensor | None], params: Sequence[Tensor | None], meta: Sequence[Any]
    ) -> Sequence[Tensor]:
        """Adds the derivatives with respect to parameters and meta-parameters, if there are any."""
        if meta:
            self.meta = added(self.meta, meta)
        return [t for t in (added(v, params) if params else v) if t is not None]
