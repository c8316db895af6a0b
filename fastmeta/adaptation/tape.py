"""The record of an inner loop, and its reverse sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

Grads = Sequence[Tensor | None]


class Cotangents(NamedTuple):
    """Derivatives of a number in the arguments of one update.

    Attributes:
        params: in the parameters, the gradients being held fixed.
        state: in the inner optimizer's state.
        grads: in the gradients; ``None`` where there was none.
        rates: in the adaptation's learned rates.
    """

    params: list[Tensor]
    state: list[Tensor]
    grads: list[Tensor | None]
    rates: list[Tensor]


# From the derivatives in one update's results (parameters, state) to those in its arguments.
Pullback = Callable[[Sequence[Tensor], Sequence[Tensor]], Cotangents]


@dataclass
class InnerStep:
    """One inner step as a walk back needs it.

    Attributes:
        params: the parameters before the step, leaves that require a gradient.
        pullback: of the update.
        grads: the gradients in ``params``: with their graph where that was kept; without one where
            the tape keeps gradients and all parameters move; else ``None``.
    """

    params: list[Tensor]
    pullback: Pullback
    grads: Grads | None


ThroughGrads = Callable[[InnerStep, Cotangents], Sequence[Tensor]]


@dataclass
class Tape:
    """The steps of one inner loop, for a walk back.

    Attributes:
        graphs: of how many last steps the graph is kept, too.
        gradients: whether the gradients of the others are kept.
        steps: the steps taken.
    """

    graphs: int = 0
    gradients: bool = False
    steps: list[InnerStep] = field(default_factory=list)

    def reverse_sweep(
        self,
        v: Sequence[Tensor],
        state: Sequence[Tensor],
        rates: Sequence[Tensor],
        through_grads: ThroughGrads | None = None,
    ) -> tuple[Sequence[Tensor], list[Tensor]]:
        """From derivatives at the end of the inner loop to those at its beginning; empties it.

        Args:
            v: derivatives in the last parameters.
            state: the last state; it is not used afterwards, so its derivative is zero.
            rates: the learned rates.
            through_grads: from a step and its cotangents to the derivatives in its parameters,
                gradients included; without it the gradients are held fixed.

        Returns:
            The derivatives in the first parameters and in the rates.
        """
        d_state = [torch.zeros_like(s) for s in state]
        d_rates = [torch.zeros_like(r) for r in rates]
        while self.steps:
            step = self.steps.pop()
            back = step.pullback(v, d_state)
            v = back.params if through_grads is None else through_grads(step, back)
            d_state = back.state
            d_rates = [a + b for a, b in zip(d_rates, back.rates, strict=True)]
        return v, d_rates
