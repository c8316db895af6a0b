"""Muon in the inner loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_bool, check_choice, check_integer, check_positive
from fastmeta.adaptation._settings import Setting, check_setting, differentiated
from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.tape import Grads

Adjust = Literal["original", "match_rms_adamw"]


class Muon(Adaptation):
    """Muon in the inner loop, as `torch.optim.Muon`, in the dtype of the parameters.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks": the step is the
    momentum buffer, orthogonalized by a Newton-Schulz iteration. torch computes the iteration in
    bfloat16, whose rounding has no derivative. For matrices only; use
    [`Groups`][fastmeta.adaptation.Groups] for the other parameters.

    Args:
        lr: inner learning rate; positive. This, `weight_decay` and `momentum` may be tensors
            without dimensions; where they require a gradient, they are learned.
        steps: inner steps during meta-training.
        weight_decay: decoupled, as in [`AdamW`][fastmeta.adaptation.AdamW].
        momentum: decay rate of the buffer, in `[0, 1)`.
        nesterov: whether the step looks ahead by the momentum.
        ns_coefficients: of the iteration's polynomial `a x + b x^3 + c x^5`.
        ns_steps: iterations.
        eps: smallest norm that a buffer is divided by.
        adjust_lr: `"original"`: `lr` times `sqrt(max(1, rows / columns))`; `"match_rms_adamw"`:
            times `0.2 sqrt(max(rows, columns))`.

    Raises:
        ValueError: if an argument is out of range, or (from `bind`) a parameter is no matrix.
    """

    def __init__(
        self,
        lr: Setting,
        steps: int = 1,
        weight_decay: Setting = 0.1,
        momentum: Setting = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        ns_steps: int = 5,
        eps: float = 1e-7,
        adjust_lr: Adjust = "original",
    ) -> None:
        check_setting("lr", lr, positive=True)
        check_integer("steps", steps, 0)
        check_setting("weight_decay", weight_decay)
        check_setting("momentum", momentum, below=1)
        check_bool("nesterov", nesterov)
        check_integer("ns_steps", ns_steps, 1)
        check_positive("eps", eps)
        check_choice("adjust_lr", adjust_lr, ("original", "match_rms_adamw"))
        self.lr = lr
        self.steps = steps
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.nesterov = nesterov
        self.ns_coefficients = ns_coefficients
        self.ns_steps = ns_steps
        self.eps = eps
        self.adjust_lr = adjust_lr
        self.rates = differentiated(lr, weight_decay, momentum)

    @override
    def bind(self, params: Sequence[Tensor], names: Sequence[str]) -> None:
        for name, param in zip(names, params, strict=True):
            if param.dim() != 2:
                raise ValueError(
                    f"Muon is for matrices, but {name} has shape {tuple(param.shape)}. Choose "
                    "another optimizer for it with Groups."
                )

    @override
    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(p) for p in params]

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        updated, buffers = list(params), list(state)
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            buffers[i] = self.momentum * state[i] + (1 - self.momentum) * grad
            along = buffers[i]
            if self.nesterov:
                along = self.momentum * along + (1 - self.momentum) * grad
            decayed = params[i] * (1 - self.lr * self.weight_decay)
            rate = self.lr * self._factor(params[i])
            updated[i] = decayed - rate * self._orthogonalized(along)
        return updated, buffers

    def _factor(self, param: Tensor) -> float:
        rows, columns = param.shape
        if self.adjust_lr == "original":
            return float(max(1, rows / columns) ** 0.5)
        return float(0.2 * max(rows, columns) ** 0.5)

    def _orthogonalized(self, matrix: Tensor) -> Tensor:
        a, b, c = self.ns_coefficients
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T if tall else matrix
        square = (x * x).sum()
        # The norm has no derivative at zero, where the result is zero.
        norm = torch.where(square > 0, square, 1).sqrt().clamp(min=self.eps)
        x = x / norm
        for _ in range(self.ns_steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if tall else x
