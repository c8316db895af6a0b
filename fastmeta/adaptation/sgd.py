"""Inner gradient descent, as in MAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.adaptation.base import Adaptation, check_loop
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback


class SGD(Adaptation):
    """``theta_k = theta_{k-1} - lr * grad S(theta_{k-1})`` for all parameters.

    Finn et al. 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", eq. 1.
    With momentum, ``b_k = momentum * b_{k-1} + grad S(theta_{k-1})`` takes the gradient's place, as
    in ``torch.optim.SGD``; every task begins with ``b_0 = 0``.

    Args:
        lr: inner learning rate.
        steps: inner steps during meta-training.
        momentum: in ``[0, 1)``.

    Raises:
        ValueError: if ``lr`` is not positive, ``steps`` is negative or ``momentum`` out of range.
    """

    task_batchable = True

    def __init__(self, lr: float, steps: int = 1, momentum: float = 0.0) -> None:
        check_loop(lr, steps)
        if not 0 <= momentum < 1:
            raise ValueError(f"the momentum must be at least 0 and below 1, got {momentum}.")
        self.lr = lr
        self.steps = steps
        self.momentum = momentum

    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        """See :meth:`Adaptation.start`."""
        return [torch.zeros_like(p) for p in params] if self.momentum else []

    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See :meth:`Adaptation.update`."""
        if not self.momentum:
            return list(ops.inner_step(params, grads, self.lr)), []
        pairs = list(zip(state, grads, strict=True))
        moved = [None if g is None else self.momentum * b + g for b, g in pairs]
        kept = [b if m is None else m for (b, _), m in zip(pairs, moved, strict=True)]
        return list(ops.inner_step(params, moved, self.lr)), kept

    def vjp(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Pullback]:
        """See :meth:`Adaptation.vjp`; the update is linear, so nothing of it needs to be kept."""
        idle = [g is None for g in grads]

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            used = [None if still else d for d, still in zip(d_params, idle, strict=True)]
            if not self.momentum:
                d_grads = [None if d is None else d * -self.lr for d in used]
                return Cotangents(list(d_params), [], d_grads, [])
            d_moved = ops.inner_step(d_state, used, self.lr)
            pairs = list(zip(d_moved, idle, strict=True))
            d_before = [d if still else self.momentum * d for d, still in pairs]
            d_grads = [None if still else d for d, still in pairs]
            return Cotangents(list(d_params), d_before, d_grads, [])

        with torch.no_grad():
            new_params, new_state = self.update(step, params, grads, state)
        return new_params, new_state, pullback
