"""RMSprop in the inner loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_integer
from fastmeta.adaptation._settings import Setting, check_setting, differentiated, is_zero
from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.tape import Grads
from fastmeta.reference.adamw import root


class RMSprop(Adaptation):
    """RMSprop in the inner loop, as `torch.optim.RMSprop` without centering.

    Tieleman & Hinton 2012, lecture 6.5. Differentiable, also where a gradient is exactly zero.

    Args:
        lr: inner learning rate; positive. All settings may be tensors without dimensions; where
            they require a gradient, they are learned.
        steps: inner steps during meta-training.
        alpha: decay rate of the mean square, in `[0, 1)`.
        eps: added to the square root; positive.
        weight_decay: `weight_decay * theta` is added to the gradient.
        momentum: decay rate of a buffer of the steps, in `[0, 1)`.

    Raises:
        ValueError: if an argument is not a number or out of range.
    """

    task_batchable = True

    def __init__(
        self,
        lr: Setting,
        steps: int = 1,
        alpha: Setting = 0.99,
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        momentum: Setting = 0.0,
    ) -> None:
        check_setting("lr", lr, positive=True)
        check_integer("steps", steps, 0)
        check_setting("alpha", alpha, below=1)
        check_setting("eps", eps, positive=True)
        check_setting("weight_decay", weight_decay)
        check_setting("momentum", momentum, below=1)
        self.lr = lr
        self.steps = steps
        self.alpha = alpha
        self.eps = eps
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.rates = differentiated(lr, alpha, eps, weight_decay, momentum)

    @override
    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        # The mean squares, then the buffers.
        return [torch.zeros_like(p) for _ in range(1 + self._has_buffers) for p in params]

    @property
    def _has_buffers(self) -> bool:
        return not is_zero(self.momentum)

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        count = len(params)
        updated, squares, buffers = list(params), list(state[:count]), list(state[count:])
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            if not is_zero(self.weight_decay):
                grad = grad + self.weight_decay * params[i]
            squares[i] = self.alpha * squares[i] + (1 - self.alpha) * grad * grad
            move = grad / (root(squares[i]) + self.eps)
            if self._has_buffers:
                move = buffers[i] = self.momentum * buffers[i] + move
            updated[i] = params[i] - self.lr * move
        return updated, [*squares, *buffers]
