"""Adam in the inner loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_integer
from fastmeta.adaptation._settings import Setting, are_numbers, check_setting, differentiated
from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback


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

    def _bias_corrections(self, step: int) -> tuple[Setting, Setting]:
        first, second = self.betas
        return 1 - first ** (step + 1), 1 - second ** (step + 1)

    @override
    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        # The first moments, then the second ones.
        return [torch.zeros_like(p) for _ in range(2) for p in params]

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        count = len(params)
        first, second = self.betas
        bias_1, bias_2 = self._bias_corrections(step)
        updated, means, squares = list(params), list(state[:count]), list(state[count:])
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            means[i] = first * means[i] + (1 - first) * grad
            squares[i] = second * squares[i] + (1 - second) * grad * grad
            width = root(squares[i] / bias_2) + self.eps
            updated[i] = params[i] - self.lr / bias_1 * means[i] / width
        return updated, [*means, *squares]

    @override
    def vjp(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Pullback]:
        if not are_numbers(self.lr, *self.betas, self.eps):
            return super().vjp(step, params, grads, state)
        # The pullback keeps the gradients and the new state.
        count = len(params)
        first, second = self.betas
        bias_1, bias_2 = self._bias_corrections(step)
        with torch.no_grad():
            new_params, new_state = self.update(step, params, grads, state)

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            d_means, d_squares = list(d_state[:count]), list(d_state[count:])
            d_grads: list[Tensor | None] = [None] * count
            for i, grad in enumerate(grads):
                if grad is None:
                    continue
                mean, square = new_state[i], new_state[count + i]
                root = (square / bias_2).sqrt()
                width = root + self.eps
                scaled = d_params[i] * (self.lr / bias_1) / width
                d_mean = d_means[i] - scaled
                # The derivative of the root; 0 where `root` says so.
                slope = scaled * mean / width / (root * (2 * bias_2))
                d_square = d_squares[i] + torch.where(square > 0, slope, 0)
                d_grads[i] = (1 - first) * d_mean + (2 * (1 - second)) * grad * d_square
                d_means[i], d_squares[i] = first * d_mean, second * d_square
            return Cotangents(list(d_params), [*d_means, *d_squares], d_grads, [])

        return new_params, new_state, pullback


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

    def _decayed(self, params: Sequence[Tensor], grads: Grads) -> list[Tensor]:
        factor = 1 - self.lr * self.weight_decay
        return [p if g is None else p * factor for p, g in zip(params, grads, strict=True)]

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return super().update(step, self._decayed(params, grads), grads, state)

    @override
    def vjp(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Pullback]:
        if not are_numbers(self.lr, *self.betas, self.eps, self.weight_decay):
            return Adaptation.vjp(self, step, params, grads, state)
        # Adam's pullback does not depend on the parameters; its update is this class's.
        new_params, new_state, inner = super().vjp(step, params, grads, state)

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            found = inner(d_params, d_state)
            return found._replace(params=self._decayed(found.params, grads))

        return new_params, new_state, pullback


def root(square: Tensor) -> Tensor:
    """The square root with derivative 0 at 0, where every gradient so far was zero."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)
