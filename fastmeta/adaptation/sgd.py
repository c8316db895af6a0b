"""Gradient descent in the inner loop, as in MAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_bool, check_integer
from fastmeta.adaptation._settings import (
    Setting,
    are_numbers,
    check_setting,
    differentiated,
    is_zero,
    on_device,
)
from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback, Scaled


class SGD(Adaptation):
    """Gradient descent, optionally with momentum: the inner loop of MAML.

    `theta_k = theta_{k-1} - lr * grad S(theta_{k-1})` for all parameters, `S` the support loss;
    Finn et al. 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", eq. 1.
    The other arguments are those of `torch.optim.SGD`: with momentum, `b_k = momentum * b_{k-1} +
    grad S(theta_{k-1})` replaces the gradient; each task starts from `b_0 = 0`.

    Args:
        lr: inner learning rate; positive. This, `momentum` and `weight_decay` may be tensors
            without dimensions; where they require a gradient, they are learned.
        steps: inner steps during meta-training.
        momentum: decay rate of the gradient buffer, in `[0, 1)`; 0 is plain gradient descent.
        nesterov: whether the step is along `grad + momentum * b_k`.
        weight_decay: `weight_decay * theta` is added to the gradient.

    Raises:
        ValueError: if an argument is not a number or out of range, or `nesterov` is set without
            momentum.
    """

    task_batchable = True

    def __init__(
        self,
        lr: Setting,
        steps: int = 1,
        momentum: Setting = 0.0,
        nesterov: bool = False,
        weight_decay: Setting = 0.0,
    ) -> None:
        check_setting("lr", lr, positive=True)
        check_integer("steps", steps, 0)
        check_setting("momentum", momentum, below=1)
        check_bool("nesterov", nesterov)
        check_setting("weight_decay", weight_decay)
        if nesterov and is_zero(momentum):
            raise ValueError("nesterov=True needs momentum; got momentum=0.")
        self.lr = lr
        self.steps = steps
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.rates = differentiated(lr, momentum, weight_decay)

    @property
    def is_plain(self) -> bool:
        """Whether a step is `theta - lr * gradient`, with a number `lr`."""
        numbers = are_numbers(self.lr, self.momentum, self.weight_decay)
        return numbers and not self.momentum and not self.weight_decay

    @override
    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        return [] if is_zero(self.momentum) else [torch.zeros_like(p) for p in params]

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        lr = on_device(self.lr, params)
        if not is_zero(self.weight_decay):
            pairs = list(zip(grads, params, strict=True))
            grads = [None if g is None else g + self.weight_decay * p for g, p in pairs]
        if is_zero(self.momentum):
            return list(ops.inner_step(params, grads, lr)), []
        triples = zip(state, grads, strict=True)
        buffers = [None if g is None else self.momentum * b + g for b, g in triples]
        kept = [b if new is None else new for b, new in zip(state, buffers, strict=True)]
        along: Grads = buffers
        if self.nesterov:
            pairs = list(zip(grads, kept, strict=True))
            along = [None if g is None else g + self.momentum * b for g, b in pairs]
        return list(ops.inner_step(params, along, lr)), kept

    @override
    def pullback(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> Pullback:
        lr, momentum, decay = self.lr, self.momentum, self.weight_decay
        if not are_numbers(lr, momentum, decay) or decay or self.nesterov:
            return super().pullback(step, params, grads, state)
        # The update is linear: the pullback keeps no tensor.
        skipped = [g is None for g in grads]

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            used = [None if skip else d for d, skip in zip(d_params, skipped, strict=True)]
            if not momentum:
                return Cotangents(list(d_params), [], Scaled(used, -float(lr)), [])
            d_buffers = ops.inner_step(d_state, used, float(lr))
            pairs = list(zip(d_buffers, skipped, strict=True))
            d_before = [d if skip else momentum * d for d, skip in pairs]
            d_grads = [None if skip else d for d, skip in pairs]
            return Cotangents(list(d_params), d_before, d_grads, [])

        return pullback
