"""Inner gradient descent, as in MAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.adaptation.base import Adaptation, Adapted, LossFn


class SGD(Adaptation):
    """``theta_k = theta_{k-1} - lr * grad S(theta_{k-1})`` for all parameters.

    Finn et al. 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", eq. 1.

    Args:
        lr: inner learning rate.
        steps: inner steps during meta-training.

    Raises:
        ValueError: if ``lr`` is not positive or ``steps`` is negative.
    """

    def __init__(self, lr: float, steps: int = 1) -> None:
        if not lr > 0:
            raise ValueError(f"the inner learning rate must be positive, got {lr}.")
        if steps < 0:
            raise ValueError(f"the number of inner steps must not be negative, got {steps}.")
        self.lr = lr
        self.steps = steps

    def adapt(
        self,
        loss: LossFn,
        params: Sequence[Tensor],
        *,
        steps: int | None = None,
        create_graph: bool = False,
        record: bool = False,
    ) -> Adapted:
        """See :meth:`Adaptation.adapt`."""
        fast = list(params) if create_graph else [p.detach().requires_grad_() for p in params]
        inner_grads: list[list[Tensor | None]] = []
        losses: list[Tensor] = []
        for _ in range(self.steps if steps is None else steps):
            value = loss(fast)
            grads = torch.autograd.grad(value, fast, create_graph=create_graph, allow_unused=True)
            losses.append(value.detach())
            if record:
                inner_grads.append([None if g is None else g.detach() for g in grads])
            if create_graph:
                fast = list(ops.inner_step(fast, grads, self.lr))
            else:
                with torch.no_grad():
                    fast = [t.requires_grad_() for t in ops.inner_step(fast, grads, self.lr)]
        return Adapted(fast, inner_grads, losses)
