"""Inner gradient descent with learned rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastmeta import ops
from fastmeta.adaptation.base import Adaptation, check_loop
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback

Per = Literal["element", "tensor"]


class MetaSGD(Adaptation):
    """Inner gradient descent whose rates are learned together with the initialisation.

    Li et al. 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", algorithm 1. The
    rates may turn negative, as in the paper. Exact meta-gradients differentiate in them exactly,
    first-order ones hold the inner gradients fixed; Reptile leaves them as they are.

    Args:
        lr: where every rate begins.
        steps: inner steps during meta-training.
        per: one rate an ``"element"`` of the parameters, or one a parameter ``"tensor"``.
        per_step: whether every inner step has its own; further steps have the last one's. With
            ``per="tensor"`` these are the rates of MAML++ (LSLR; Antoniou et al. 2019, section 4).

    Attributes:
        rates: one tensor a parameter tensor, once a learner is built with it; ``(steps, ...)`` with
            ``per_step``.

    Raises:
        ValueError: if ``lr`` is not positive, ``steps`` is negative or ``per`` unknown.
    """

    def __init__(
        self, lr: float, steps: int = 1, per: Per = "element", per_step: bool = False
    ) -> None:
        check_loop(lr, steps)
        if per not in get_args(Per):
            raise ValueError(f"per must be one of {', '.join(get_args(Per))}; got {per!r}.")
        self.lr = lr
        self.steps = steps
        self.per = per
        self.per_step = per_step

    def bind(self, params: Sequence[Tensor], names: Sequence[str]) -> None:
        """See :meth:`Adaptation.bind`.

        Raises:
            ValueError: if the rates were made for other parameters.
        """
        steps = (max(self.steps, 1),) if self.per_step else ()
        shapes = [
            torch.Size((*steps, *p.shape) if self.per == "element" else steps) for p in params
        ]
        if not self.rates:
            self.rates = [
                nn.Parameter(torch.full(s, self.lr, dtype=p.dtype, device=p.device))
                for p, s in zip(params, shapes, strict=True)
            ]
        elif [r.shape for r in self.rates] != shapes:
            raise ValueError(
                "this MetaSGD already has the rates of another network. Make one for each network."
            )

    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See :meth:`Adaptation.update`.

        Raises:
            RuntimeError: before :meth:`bind`.
        """
        if not self.rates:
            raise RuntimeError(
                "MetaSGD has no rates yet: call bind(params, names), as a learner does."
            )
        return list(ops.inner_step(params, grads, [self._of(step, r) for r in self.rates])), []

    def vjp(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Pullback]:
        """See :meth:`Adaptation.vjp`; keeps the gradients."""
        rates = [self._of(step, r.detach()) for r in self.rates]

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            d_grads: list[Tensor | None] = []
            d_rates: list[Tensor] = []
            for d, grad, rate, whole in zip(d_params, grads, rates, self.rates, strict=True):
                d_rates.append(torch.zeros_like(whole))
                if grad is None:
                    d_grads.append(None)
                    continue
                d_grads.append(-rate * d)
                product = -d * grad
                own = self._of(step, d_rates[-1])
                own.copy_(product if self.per == "element" else product.sum())
            return Cotangents(list(d_params), [], d_grads, d_rates)

        with torch.no_grad():
            new_params, _ = self.update(step, params, grads, state)
        return new_params, [], pullback

    def _of(self, step: int, rate: Tensor) -> Tensor:
        """A view of the part of ``rate`` that is the step's."""
        return rate[min(step, len(rate) - 1)] if self.per_step else rate
