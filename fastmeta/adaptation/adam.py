"""Adam in the inner loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_integer
from fastmeta.adaptation._settings import (
    Setting,
    are_numbers,
    check_setting,
    differentiated,
    is_zero,
)
from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback
from fastmeta.reference.adamw import root


class Adam(Adaptation):
    """Adam in the inner loop, as `torch.optim.Adam`; moments start from zero for each task.

    Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1. Differentiable,
    also where a gradient is exactly zero. The first update is nearly `lr * sign(gradient)`: its
    derivative is about `1 / eps` where a gradient is smaller than `eps`. For a meta-gradient,
    choose `eps` well above the rounding errors of the gradients.

    Args:
        lr: inner learning rate; positive. All settings may be tensors without dimensions; where
            they require a gradient, they are learned.
        steps: inner steps during meta-training.
        betas: decay rates of the first and the second moment, each in `[0, 1)`.
        eps: added to the square root of the second moment; positive.

    Raises:
        ValueError: if an argument is not a number or out of range.
    """

    task_batchable = True
    weight_decay: Setting = 0.0

    def __init__(
        self,
        lr: Setting,
        steps: int = 1,
        betas: tuple[Setting, Setting] = (0.9, 0.999),
        eps: Setting = 1e-8,
    ) -> None:
        check_setting("lr", lr, positive=True)
        check_integer("steps", steps, 0)
        if not isinstance(betas, list | tuple) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}.")
        for beta in betas:
            check_setting("each of betas", beta, below=1)
        check_setting("eps", eps, positive=True)
        self.lr = lr
        self.steps = steps
        self.betas = tuple(betas)
        self.eps = eps
        self.rates = differentiated(lr, *betas, eps)

    def _is_fused(self, params: Sequence[Tensor]) -> bool:
        """Whether there is one kernel for all parameters; not with tensors as settings."""
        numbers = are_numbers(self.lr, *self.betas, self.eps, self.weight_decay)
        return numbers and len({(p.dtype, p.device) for p in params}) == 1

    def _settings(self, step: int) -> dict[str, Any]:
        settings = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "step": step}
        return {**settings, "weight_decay": self.weight_decay}

    @override
    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        # The first moments, then the second ones.
        return [torch.zeros_like(p) for _ in range(2) for p in params]

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        count = len(params)
        updated, means, squares = list(params), list(state[:count]), list(state[count:])
        used, known = _known(grads)
        if not used:
            return updated, [*means, *squares]
        own = [[kind[i] for i in used] for kind in (updated, means, squares)]
        if self._is_fused(params):
            found = ops.adamw_step(own[0], known, own[1], own[2], **self._settings(step))
        else:
            found = self._composed(step, known, *own)
        for i, param, mean, square in zip(used, *found, strict=True):
            updated[i], means[i], squares[i] = param, mean, square
        return updated, [*means, *squares]

    def _composed(
        self,
        step: int,
        grads: Sequence[Tensor],
        params: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        first, second = self.betas
        bias_1, bias_2 = 1 - first ** (step + 1), 1 - second ** (step + 1)
        for i, grad in enumerate(grads):
            means[i] = first * means[i] + (1 - first) * grad
            squares[i] = second * squares[i] + (1 - second) * grad * grad
            width = root(squares[i] / bias_2) + self.eps
            if not is_zero(self.weight_decay):
                params[i] = params[i] * (1 - self.lr * self.weight_decay)
            params[i] = params[i] - self.lr / bias_1 * means[i] / width
        return params, means, squares

    @override
    def pullback(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> Pullback:
        used, known = _known(grads)
        if not used or not self._is_fused(params):
            return super().pullback(step, params, grads, state)
        count = len(params)
        means, squares = [state[i] for i in used], [state[count + i] for i in used]

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            back = [[kind[i] for i in used] for kind in (d_params, d_state, d_state[count:])]
            found = ops.adamw_adjoint(known, means, squares, *back, **self._settings(step))
            result = Cotangents(list(d_params), list(d_state), [None] * count, [])
            d_grads: list[Tensor | None] = [None] * count
            for i, param, grad, mean, square in zip(used, *found, strict=True):
                result.params[i], d_grads[i] = param, grad
                result.state[i], result.state[count + i] = mean, square
            return result._replace(grads=d_grads)

        return pullback


class AdamW(Adam):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`.

    Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2: the parameters
    are multiplied by `1 - lr * weight_decay` before the step of [`Adam`][fastmeta.adaptation.Adam].

    Args:
        lr: see `Adam`.
        steps: see `Adam`.
        betas: see `Adam`.
        eps: see `Adam`.
        weight_decay: coefficient of the decay, at least 0; may be a tensor, too.

    Raises:
        ValueError: if an argument is not a number or out of range.
    """

    task_batchable = True

    def __init__(
        self,
        lr: Setting,
        steps: int = 1,
        betas: tuple[Setting, Setting] = (0.9, 0.999),
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.01,
    ) -> None:
        super().__init__(lr, steps, betas, eps)
        check_setting("weight_decay", weight_decay)
        self.weight_decay = weight_decay
        self.rates = differentiated(lr, *betas, eps, weight_decay)


def _known(grads: Grads) -> tuple[list[int], list[Tensor]]:
    """The gradients that are not `None`, and their places."""
    used = [i for i, g in enumerate(grads) if g is not None]
    return used, [g for g in grads if g is not None]
