"""Gradient descent whose learning rates and weight decay a small network generates (ALFA)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_choice, check_nonnegative
from fastmeta.adaptation.base import Adaptation, check_loop
from fastmeta.adaptation.tape import Grads

Start = Literal["identity", "paper"]


class ALFA(Adaptation):
    """Adaptive learning of the inner loop: a network generates each step's rates and weight decay.

    Baik et al. 2020, "Meta-Learning with Adaptive Hyperparameters" (arXiv 2011.00209). With `tau`
    the means of all `L` parameter tensors and of their gradients, in inner step `k`:

        (A, B)  = h(tau),  h = linear(2L, 2L), ReLU, linear(2L, 2L)
        theta_l = (1 - B_l beta_{k,l}) theta_l - A_l alpha_{k,l} grad_l S(theta)

    `h`, `alpha` and `beta` are learned together with the initialisation. As in the code of the
    authors, `tau` is a constant for the derivatives of the gradients, but not for those of the
    parameters. Tensors that are frozen have zeros in `tau`. The authors do not adapt BatchNorm's
    scales and shifts; here a [`LayerPattern`][fastmeta.adaptation.LayerPattern] can leave them out.
    Their variant with a random, fixed initialisation is not included.

    Longer inner loops than in training use the last step's `alpha` and `beta`, with a warning: they
    tend to diverge.

    Args:
        lr: initial value of every `alpha`; positive.
        steps: inner steps during meta-training.
        weight_decay: initial value of every `beta`, relative to `lr`.
        start: of the last layer of `h`. `"identity"`: `A = B = 1`, so that the inner loop begins as
            gradient descent with weight decay; **ours**. `"paper"`: random, as in the code of the
            authors, where `A` begins near zero with random signs.

    Attributes:
        rates: weight and bias of both layers of `h`, then `alpha` and `beta`, `(steps, L)`; created
            when a learner is built.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, lr: float, steps: int = 1, weight_decay: float = 5e-4, start: Start = "identity"
    ) -> None:
        check_loop(lr, steps)
        check_nonnegative("weight_decay", weight_decay)
        check_choice("start", start, get_args(Start))
        self.lr = lr
        self.steps = steps
        self.weight_decay = weight_decay
        self.start_of_h: Start = start
        self._places: list[int] = []  # of the parameters in tau

    @override
    def bind(self, params: Sequence[Tensor], names: Sequence[str]) -> None:
        size, steps = len(params), max(self.steps, 1)
        if not self.rates:
            like = params[0]
            hidden, last = (
                nn.Linear(2 * size, 2 * size, dtype=like.dtype, device=like.device)
                for _ in range(2)
            )
            if self.start_of_h == "identity":
                nn.init.zeros_(last.weight)
                nn.init.ones_(last.bias)
            alpha = like.new_full((steps, size), self.lr)
            self.rates = [
                *hidden.parameters(),
                *last.parameters(),
                nn.Parameter(alpha),
                nn.Parameter(alpha * self.weight_decay),
            ]
        elif self.rates[-1].shape != (steps, size):
            raise ValueError(
                "this ALFA already has the rates of another network or number of steps. Create one "
                "ALFA per learner."
            )
        self._places = list(range(size))

    @override
    def restricted(
        self, kept: Sequence[int], params: Sequence[Tensor], names: Sequence[str]
    ) -> ALFA:
        other = copy.copy(self)
        other._places = [self._places[i] for i in kept]
        return other

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if not self.rates:
            raise RuntimeError(
                "ALFA has no rates yet: call bind(params, names), as a learner does."
            )
        if step == self.steps > 0:
            warnings.warn(
                f"ALFA was built for {self.steps} inner steps, and longer inner loops tend to "
                f"diverge. Adapt with steps={self.steps}, or train with more.",
                UserWarning,
                stacklevel=2,
            )
        rates, decay = self._generated(step, params, grads)
        pairs = zip(params, grads, decay.unbind(), strict=True)
        decayed = [p if g is None else p * (1 - d) for p, g, d in pairs]
        return list(ops.inner_step(decayed, grads, rates)), []

    def _generated(
        self, step: int, params: Sequence[Tensor], grads: Grads
    ) -> tuple[Tensor, Tensor]:
        """Learning rates `A alpha` and weight decay `B beta`, one number per parameter each."""
        *layers, alpha, beta = self.rates
        size, k = alpha.shape[1], min(step, len(alpha) - 1)
        tau = [alpha.new_zeros(())] * (2 * size)
        for p, g, i in zip(params, grads, self._places, strict=True):
            if g is not None:
                tau[i], tau[size + i] = p.mean(), g.detach().mean()
        hidden = F.relu(F.linear(torch.stack(tau), layers[0], layers[1]))
        factors = F.linear(hidden, layers[2], layers[3])
        rates, decay = factors[:size] * alpha[k], factors[size:] * beta[k]
        if len(params) == size:
            return rates, decay
        return rates[self._places], decay[self._places]
