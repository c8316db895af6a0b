"""The record of an inner loop, and its reverse sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, overload

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastmeta.adaptation.base import Adaptation

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

    def record(
        self,
        adaptation: Adaptation,
        number: int,
        params: list[Tensor],
        grads: Grads,
        state: Sequence[Tensor],
        kept: Grads | None,
    ) -> None:
        """Adds a step.

        Args:
            adaptation: the update rule.
            number: of the step.
            params: the parameters before it.
            grads: their gradients, without a graph.
            state: the inner optimizer's state before it.
            kept: the gradients to keep, see `InnerStep.grads`.
        """
        pullback = adaptation.pullback(number, params, grads, state)
        self.steps.append(InnerStep(number, params, pullback, kept))

    def pop(self) -> InnerStep | None:
        """Removes the last step, and returns it; `None` if there is none."""
        return self.steps.pop() if self.steps else None

    def reverse_sweep(
        self,
        v: Sequence[Tensor],
        d_state: Sequence[Tensor],
        rates: Sequence[Tensor],
        through_grads: ThroughGrads | None = None,
    ) -> tuple[Sequence[Tensor], Sequence[Tensor], list[Tensor]]:
        """From derivatives after the recorded steps to those before them; empties the tape.

        Arguments and result as of `reverse_sweep`.
        """
        return reverse_sweep(self.pop, v, d_state, rates, through_grads)


def reverse_sweep(
    pop: Callable[[], InnerStep | None],
    v: Sequence[Tensor],
    d_state: Sequence[Tensor],
    rates: Sequence[Tensor],
    through_grads: ThroughGrads | None = None,
) -> tuple[Sequence[Tensor], Sequence[Tensor], list[Tensor]]:
    """From derivatives after inner steps to those before them.

    Args:
        pop: returns the steps from the last to the first, then `None`.
        v: derivatives with respect to the last parameters.
        d_state: derivatives with respect to the last state; zero after the last inner step.
        rates: the learned rates.
        through_grads: from a step and its cotangents to the derivatives with respect to its
            parameters, through the gradients, too; without it the gradients are held fixed.

    Returns:
        The derivatives with respect to the first parameters, to the first state and to the rates.
    """
    d_rates = [torch.zeros_like(r) for r in rates]
    while (step := pop()) is not None:
        back = step.pullback(v, d_state)
        v, d_state = back.params, back.state
        if through_grads is not None:
            v = through_grads(step, back)
        d_rates = [a + b for a, b in zip(d_rates, back.rates, strict=True)]
        del step, back  # before steps are run again
    return v, d_state, d_rates
