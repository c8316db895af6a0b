"""Inner gradient descent that is drawn back to where it began, as in iMAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.adaptation.base import Adaptation, check_loop
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback


class ProximalSGD(Adaptation):
    """Gradient descent on ``S(theta_k) + lam/2 |theta_k - theta_0|^2``.

    Rajeswaran et al. 2019, "Meta-Learning with Implicit Gradients", eq. 3 (the authors' code pulls
    once, after the last step). The state is ``theta_k - theta_0``, which begins with 0. A step
    without a gradient for a parameter leaves it where it is. ``lr * lam`` must be well below 2.

    Args:
        lr: inner learning rate.
        steps: inner steps during meta-training.
        lam: strength of the pull; 2 in the authors' example for Omniglot.

    Raises:
        ValueError: if ``lr`` is not positive, or ``steps`` or ``lam`` is negative.
    """

    task_batchable = True

    def __init__(self, lr: float, steps: int = 1, lam: float = 2.0) -> None:
        check_loop(lr, steps)
        if not lam >= 0:
            raise ValueError(f"lam must not be negative, got {lam}.")
        self.lr = lr
        self.steps = steps
        self.lam = lam

    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        """See :meth:`Adaptation.start`."""
        return [torch.zeros_like(p) for p in params]

    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See :meth:`Adaptation.update`."""
        pulled = [
            None if g is None else g + self.lam * way for g, way in zip(grads, state, strict=True)
        ]
        moved, ways = (ops.inner_step(t, pulled, self.lr) for t in (params, state))
        return list(moved), list(ways)

    def vjp(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Pullback]:
        """See :meth:`Adaptation.vjp`; the update is linear, so nothing of it needs to be kept."""
        idle = [g is None for g in grads]

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            d_pulled = [
                None if still else -self.lr * (d + e)
                for d, e, still in zip(d_params, d_state, idle, strict=True)
            ]
            d_before = ops.inner_step(d_state, d_pulled, -self.lam)
            return Cotangents(list(d_params), list(d_before), d_pulled, [])

        with torch.no_grad():
            new_params, new_state = self.update(step, params, grads, state)
        return new_params, new_state, pullback
