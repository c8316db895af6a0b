"""Gradient descent with learned learning rates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_bool, check_choice
from fastmeta.adaptation.base import Adaptation, check_loop
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback

Per = Literal["element", "tensor"]


class MetaSGD(Adaptation):
    """Gradient descent whose learning rates are learned together with the initialisation.

    Li et al. 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", algorithm 1. The
    rates may become negative, as in the paper. Exact meta-gradients differentiate with respect to
    them exactly, first-order ones hold the inner gradients fixed; Reptile does not train them.

    Args:
        lr: initial value of every rate; positive.
        steps: inner steps during meta-training.
        per: one rate per `"element"` of the parameters, or one per parameter `"tensor"`.
        per_step: whether each inner step has rates of its own; further steps use those of the last
            one. With `per="tensor"` these are the rates of MAML++ (LSLR; Antoniou et al. 2019,
            section 4).

    Attributes:
        rates: one tensor per parameter tensor, created when a learner is built;
            `(steps, ...)` with `per_step`.

    Raises:
        ValueError: if an argument is out of range or of the wrong type.
    """

    def __init__(
        self, lr: float, steps: int = 1, per: Per = "element", per_step: bool = False
    ) -> None:
        check_loop(lr, steps)
        check_choice("per", per, get_args(Per))
        check_bool("per_step", per_step)
        self.lr = lr
        self.steps = steps
        self.per = per
        self.per_step = per_step

    @override
    def bind(self, params: Sequence[Tensor], names: Sequence[str]) -> None:
        steps = (max(self.steps, 1),) if self.per_step else ()
        shapes = [
            torch.Size((*steps, *p.shape) if self.per == "element" else steps) for p in params
        ]
        if not self.rates:
            self.rates = [
                nn.Parameter(torch.full(s, self.lr, dtype=p.dtype, device=p.device))
                for p, s in zip(params, shapes, strict=True)
            ]
        elif [r.shape for r in self.rates] != shapes:
            raise ValueError(
                "this MetaSGD already has the rates of another network or number of steps. "
                "Create one MetaSGD per learner."
            )

    @override
    def restricted(
        self, kept: Sequence[int], params: Sequence[Tensor], names: Sequence[str]
    ) -> MetaSGD:
        other = copy.copy(self)
        other.rates = [self.rates[i] for i in kept]
        return other

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if not self.rates:
            raise RuntimeError(
                "MetaSGD has no rates yet: call bind(params, names), as a learner does."
            )
        return list(ops.inner_step(params, grads, [self._of(step, r) for r in self.rates])), []

    @override
    def pullback(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> Pullback:
        # The pullback keeps the gradients.
        rates = [self._of(step, r.detach()) for r in self.rates]

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            d_grads: list[Tensor | None] = []
            d_rates: list[Tensor] = []
            for d, grad, rate, whole in zip(d_params, grads, rates, self.rates, strict=True):
                d_rates.append(torch.zeros_like(whole))
                if grad is None:
                    d_grads.append(None)
                    continue
                d_grads.append(-rate * d)
                product = -d * grad
                own = self._of(step, d_rates[-1])
                own.copy_(product if self.per == "element" else product.sum())
            return Cotangents(list(d_params), [], d_grads, d_rates)

        return pullback

    def _of(self, step: int, rate: Tensor) -> Tensor:
        """A view of the part of `rate` that belongs to the step."""
        return rate[min(step, len(rate) - 1)] if self.per_step else rate


def lslr(lr: float, steps: int = 1) -> MetaSGD:
    """Gradient descent with one learned rate per parameter tensor and inner step, as in MAML++.

    Args:
        lr: initial value of every rate; positive.
        steps: inner steps during meta-training.
    """
    return MetaSGD(lr, steps, per="tensor", per_step=True)
