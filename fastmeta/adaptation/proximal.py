"""Gradient descent with a proximal term, as in iMAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_nonnegative
from fastmeta.adaptation.base import Adaptation, check_loop
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback


class ProximalSGD(Adaptation):
    """Gradient descent on the support loss with a proximal term: the inner loop of iMAML.

    It minimises `S(theta_k) + lam/2 |theta_k - theta_0|^2`, Rajeswaran et al. 2019,
    "Meta-Learning with Implicit Gradients", eq. 3 (the authors' code applies the proximal term
    once, after the last step). The state is `theta_k - theta_0`, initially 0. A step without a
    gradient for a parameter does not change it. `lr * lam` must be well below 2.

    Args:
        lr: inner learning rate; positive.
        steps: inner steps during meta-training.
        lam: coefficient of the proximal term, at least 0; 2 in the authors' example for Omniglot.

    Raises:
        ValueError: if an argument is not a number or out of range.
    """

    task_batchable = True

    def __init__(self, lr: float, steps: int = 1, lam: float = 2.0) -> None:
        check_loop(lr, steps)
        check_nonnegative("lam", lam)
        self.lr = lr
        self.steps = steps
        self.lam = lam

    @override
    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(p) for p in params]

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        total = [
            None if g is None else g + self.lam * offset
            for g, offset in zip(grads, state, strict=True)
        ]
        updated, offsets = (ops.inner_step(t, total, self.lr) for t in (params, state))
        return list(updated), list(offsets)

    @override
    def pullback(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> Pullback:
        # The update is linear: the pullback keeps no tensor.
        skipped = [g is None for g in grads]

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            d_total = [
                None if skip else -self.lr * (d + e)
                for d, e, skip in zip(d_params, d_state, skipped, strict=True)
            ]
            d_before = ops.inner_step(d_state, d_total, -self.lam)
            return Cotangents(list(d_params), list(d_before), d_total, [])

        return pullback
