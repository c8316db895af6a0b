"""Gradient descent with one learned learning rate, which has a step of its own (Robust MAML)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_in_range, check_nonnegative, check_positive
from fastmeta.adaptation.base import Adaptation, check_loop
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback


class ScalarRate(Adaptation):
    """Gradient descent with one learning rate for the whole network, learned by gradient descent.

    The rate of Robust MAML (Nguyen et al. 2021, arXiv 2103.08233), as in the code that evidently is
    the first author's: after each meta-step,

        lr <- clip(lr - hyper_lr * dQ/dlr, min_lr, max_lr),

    `Q` the combined query loss after adaptation, and `hyper_lr` the initial `lr`. The outer
    optimizer does not have this rate. Exact meta-gradients differentiate exactly with respect to
    it; first-order ones hold the inner gradients fixed, `dQ/dlr = -sum_k <g_q, g_k>`, which is
    exact with one inner step. Reptile and iMAML do not train it.

    The rate is learned for the number of inner steps in training: longer inner loops may diverge.

    Args:
        lr: initial learning rate, between `min_lr` and `max_lr`.
        steps: inner steps during meta-training.
        hyper_lr: learning rate of the learning rate; `lr` by default, 0 keeps the rate as it is.
        min_lr: smallest rate; positive.
        max_lr: largest rate.

    Attributes:
        rates: the rate, without dimensions; created when a learner is built.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        lr: float,
        steps: int = 1,
        hyper_lr: float | None = None,
        min_lr: float = 1e-6,
        max_lr: float = 1.0,
    ) -> None:
        check_loop(lr, steps)
        check_positive("min_lr", min_lr)
        check_positive("max_lr", max_lr)
        check_in_range("lr", lr, min_lr, max_lr, closed=True)
        if hyper_lr is not None:
            check_nonnegative("hyper_lr", hyper_lr)
        self.lr = lr
        self.steps = steps
        self.hyper_lr = lr if hyper_lr is None else hyper_lr
        self.min_lr, self.max_lr = min_lr, max_lr

    @property
    @override
    def own_rates(self) -> Sequence[Tensor]:
        return self.rates

    @override
    def bind(self, params: Sequence[Tensor], names: Sequence[str]) -> None:
        if not self.rates:
            self.rates = [nn.Parameter(params[0].new_tensor(self.lr))]

    @override
    def restricted(
        self, kept: Sequence[int], params: Sequence[Tensor], names: Sequence[str]
    ) -> ScalarRate:
        return copy.copy(self)

    @override
    @torch.no_grad()
    def step_rates(self) -> None:
        for rate in self.rates:
            if rate.grad is not None:
                rate.sub_(self.hyper_lr * rate.grad).clamp_(self.min_lr, self.max_lr)

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if not self.rates:
            raise RuntimeError(
                "ScalarRate has no rate yet: call bind(params, names), as a learner does."
            )
        return list(ops.inner_step(params, grads, self.rates[0])), []

    @override
    def pullback(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> Pullback:
        rate = self.rates[0].detach()

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            pairs = list(zip(d_params, grads, strict=True))
            along = [(d * g).sum() for d, g in pairs if g is not None]
            d_rate = -torch.stack(along).sum() if along else torch.zeros_like(rate)
            d_grads = [None if g is None else -rate * d for d, g in pairs]
            return Cotangents(list(d_params), [], d_grads, [d_rate])

        return pullback
