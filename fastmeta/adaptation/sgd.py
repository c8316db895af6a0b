"""Gradient descent in the inner loop, as in MAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_in_range
from fastmeta.adaptation.base import Adaptation, check_loop
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback, Scaled


class SGD(Adaptation):
    """Gradient descent, optionally with momentum: the inner loop of MAML.

    `theta_k = theta_{k-1} - lr * grad S(theta_{k-1})` for all parameters, `S` the support loss;
    Finn et al. 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", eq. 1.
    With momentum, `b_k = momentum * b_{k-1} + grad S(theta_{k-1})` replaces the gradient, as in
    `torch.optim.SGD`; each task starts from `b_0 = 0`.

    Args:
        lr: inner learning rate; positive.
        steps: inner steps during meta-training.
        momentum: decay rate of the gradient buffer, in `[0, 1)`; 0 is plain gradient descent.

    Raises:
        ValueError: if an argument is not a number or out of range.
    """

    task_batchable = True

    def __init__(self, lr: float, steps: int = 1, momentum: float = 0.0) -> None:
        check_loop(lr, steps)
        check_in_range("momentum", momentum, 0, 1)
        self.lr = lr
        self.steps = steps
        self.momentum = momentum

    @override
    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(p) for p in params] if self.momentum else []

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if not self.momentum:
            return list(ops.inner_step(params, grads, self.lr)), []
        pairs = list(zip(state, grads, strict=True))
        buffers = [None if g is None else self.momentum * b + g for b, g in pairs]
        kept = [b if new is None else new for (b, _), new in zip(pairs, buffers, strict=True)]
        return list(ops.inner_step(params, buffers, self.lr)), kept

    @override
    def vjp(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Pullback]:
        # The update is linear: the pullback keeps no tensor.
        skipped = [g is None for g in grads]

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            used = [None if skip else d for d, skip in zip(d_params, skipped, strict=True)]
            if not self.momentum:
                return Cotangents(list(d_params), [], Scaled(used, -self.lr), [])
            d_buffers = ops.inner_step(d_state, used, self.lr)
            pairs = list(zip(d_buffers, skipped, strict=True))
            d_before = [d if skip else self.momentum * d for d, skip in pairs]
            d_grads = [None if skip else d for d, skip in pairs]
            return Cotangents(list(d_params), d_before, d_grads, [])

        with torch.no_grad():
            new_params, new_state = self.update(step, params, grads, state)
        return new_params, new_state, pullback
