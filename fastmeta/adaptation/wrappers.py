"""Inner optimizers made of another: gradient clipping, schedules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import schedules
from fastmeta._checks import check_positive
from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback


class Wrapper(Adaptation):
    """Another adaptation with a changed update.

    Args:
        inner: the adaptation.
    """

    def __init__(self, inner: Adaptation) -> None:
        self.inner = inner
        self.steps = inner.steps
        self.rates = inner.rates
        self.support_loss = inner.support_loss

    @property
    @override
    def own_rates(self) -> Sequence[Tensor]:
        return self.inner.own_rates

    @override
    def step_rates(self) -> None:
        self.inner.step_rates()

    @override
    def bind(self, params: Sequence[Tensor], names: Sequence[str]) -> None:
        self.inner.bind(params, names)
        self.rates = self.inner.rates

    @override
    def restricted(
        self, kept: Sequence[int], params: Sequence[Tensor], names: Sequence[str]
    ) -> Adaptation:
        other = copy.copy(self)
        other.inner = self.inner.restricted(kept, params, names)
        other.rates = other.inner.rates
        return other

    @override
    def adapts(self, step: int, params: Sequence[Tensor]) -> Sequence[bool]:
        return self.inner.adapts(step, params)

    @override
    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        return self.inner.start(params)


class Clipped(Wrapper):
    """Another adaptation, whose gradients are clipped by their global norm.

    As `torch.nn.utils.clip_grad_norm_`: all gradients are multiplied by
    `min(1, max_norm / (norm + 1e-6))`, which is differentiated, too.

    Args:
        inner: the adaptation.
        max_norm: largest norm of the gradients of all parameters together.

    Raises:
        ValueError: if `max_norm` is not positive.
    """

    def __init__(self, inner: Adaptation, max_norm: float) -> None:
        super().__init__(inner)
        check_positive("max_norm", max_norm)
        self.max_norm = max_norm

    def _clip(self, grads: Grads) -> list[Tensor | None]:
        known = [g for g in grads if g is not None]
        if not known:
            return list(grads)
        square = torch.stack([(g * g).sum() for g in known]).sum()
        # Its root has no derivative at zero, where nothing is clipped.
        norm = torch.where(square > 0, square, 1).sqrt()
        factor = torch.where(square > 0, self.max_norm / (norm + 1e-6), 1).clamp(max=1)
        return [None if g is None else g * factor for g in grads]

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return self.inner.update(step, params, self._clip(grads), state)

    @override
    def pullback(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> Pullback:
        with torch.no_grad():
            clipped = self._clip(grads)
        inner = self.inner.pullback(step, params, clipped, state)

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            found = inner(d_params, d_state)
            known = [i for i, g in enumerate(grads) if g is not None]
            leaves = [g.detach().requires_grad_() for g in grads if g is not None]
            again: list[Tensor | None] = [None] * len(grads)
            for i, leaf in zip(known, leaves, strict=True):
                again[i] = leaf
            with torch.enable_grad():
                outputs = [g for g in self._clip(again) if g is not None]
            d_grads: list[Tensor | None] = [None] * len(grads)
            if known:
                cotangents = [found.grads[i] for i in known]
                for i, d in zip(
                    known, torch.autograd.grad(outputs, leaves, cotangents), strict=True
                ):
                    d_grads[i] = d
            return found._replace(grads=d_grads)

        return pullback


class Scheduled(Wrapper):
    """Another adaptation, the steps of which are multiplied by a factor that changes.

    For all inner optimizers here that is a schedule of the learning rate; decoupled weight decay
    follows it, as with `torch.optim.lr_scheduler`.

    Args:
        inner: the adaptation.
        schedule: the factor as a function of the inner step, from 0, or a text as of
            [`fastmeta.schedules.schedule`][]: `"warmup:10"`.
    """

    def __init__(self, inner: Adaptation, schedule: Callable[[int], float] | str) -> None:
        super().__init__(inner)
        self.schedule = schedules.schedule(schedule) if isinstance(schedule, str) else schedule

    def _moved(
        self, step: int, params: Sequence[Tensor], updated: Sequence[Tensor]
    ) -> list[Tensor]:
        factor = self.schedule(step)
        pairs = zip(params, updated, strict=True)
        return [p if new is p else p + factor * (new - p) for p, new in pairs]

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        updated, new_state = self.inner.update(step, params, grads, state)
        return self._moved(step, params, updated), new_state

    @override
    def pullback(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> Pullback:
        inner = self.inner.pullback(step, params, grads, state)
        kept = [g is None for g in grads]
        factor = self.schedule(step)

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            pairs = list(zip(d_params, kept, strict=True))
            found = inner([d if same else factor * d for d, same in pairs], d_state)
            total = [
                f if same else f + (1 - factor) * d
                for f, (d, same) in zip(found.params, pairs, strict=True)
            ]
            return found._replace(params=total)

        return pullback
