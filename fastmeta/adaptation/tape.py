"""The record of an inner loop, and its reverse sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

import torch
from torch import Tensor

Grads = Sequence[Tensor | None]


class Scaled(Sequence["Tensor | None"]):
    """`factor` times each tensor, computed when it is read: mixed order reads only some.

    Args:
        tensors: `None` stays `None`.
        factor: see above.
    """

    def __init__(self, tensors: Grads, factor: float) -> None:
        self._tensors = tensors
        self._factor = factor

    def __len__(self) -> int:
        return len(self._tensors)

    @overload
    def __getitem__(self, index: int) -> Tensor | None: ...

    @overload
    def __getitem__(self, index: slice) -> Scaled: ...

    def __getitem__(self, index: int | slice) -> Tensor | Scaled | None:
        if isinstance(index, slice):
            return Scaled(self._tensors[index], self._factor)
        tensor = self._tensors[index]
        return None if tensor is None else tensor * self._factor


class Cotangents(NamedTuple):
    """Derivatives of a scalar with respect to the arguments of one update.

    Attributes:
        params: with respect to the parameters, the gradients held fixed.
        state: with respect to the inner optimizer's state.
        grads: with respect to the gradients; `None` where there was none.
        rates: with respect to the adaptation's learned rates.
    """

    params: list[Tensor]
    state: list[Tensor]
    grads: Grads
    rates: list[Tensor]


# From derivatives with respect to the results of one update (parameters, state) to those with
# respect to its arguments.
Pullback = Callable[[Sequence[Tensor], Sequence[Tensor]], Cotangents]


@dataclass
class InnerStep:
    """What the reverse sweep needs of one inner step.

    Attributes:
        number: of the step, from 0.
        params: the parameters before the step, leaves that require a gradient.
        pullback: of the update.
        grads: the gradients with respect to `params`: with their graph where it was kept; without
            one where the tape keeps gradients and all parameters are adapted; else `None`.
    """

    number: int
    params: list[Tensor]
    pullback: Pullback
    grads: Grads | None


ThroughGrads = Callable[[InnerStep, Cotangents], Sequence[Tensor]]


@dataclass
class Tape:
    """The steps of one inner loop, recorded for the reverse sweep.

    Attributes:
        graphs: number of last steps whose graph is kept.
        gradients: whether the gradients of the other steps are kept.
        steps: the recorded steps.
    """

    graphs: int = 0
    gradients: bool = False
    steps: list[InnerStep] = field(default_factory=list)

    def reverse_sweep(
        self,
        v: Sequence[Tensor],
        d_state: Sequence[Tensor],
        rates: Sequence[Tensor],
        through_grads: ThroughGrads | None = None,
    ) -> tuple[Sequence[Tensor], Sequence[Tensor], list[Tensor]]:
        """From derivatives after the recorded steps to those before them; empties the tape.

        Args:
            v: derivatives with respect to the last parameters.
            d_state: derivatives with respect to the last state; zero after the last inner step.
            rates: the learned rates.
            through_grads: from a step and its cotangents to the derivatives with respect to its
                parameters, through the gradients, too; without it the gradients are held fixed.

        Returns:
            The derivatives with respect to the first parameters, to the first state and to the
            rates.
        """
        d_rates = [torch.zeros_like(r) for r in rates]
        while self.steps:
            step = self.steps.pop()
            back = step.pullback(v, d_state)
            v = back.params if through_grads is None else through_grads(step, back)
            d_state = back.state
            d_rates = [a + b for a, b in zip(d_rates, back.rates, strict=True)]
        return v, d_state, d_rates
