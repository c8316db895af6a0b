"""How a training run is differentiated: exactly, or by an approximation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation import Adaptation, LossFn
from fastmeta.inner_step import at_step
from fastmeta.trajectory.replay import Replay, Snapshot


@dataclass(frozen=True)
class Info:
    """What a meta-gradient leaves out.

    Attributes:
        method: as given to `metagradient`.
        dropped: what is left out of the exact meta-gradient, in a sentence.
        residual: `|b - A x| / |b|` of the linear system that was solved, a scalar: 0 if it was
            solved exactly, 1 if nothing was, more where a series diverges. `None` without one.
    """

    method: Method
    dropped: str
    residual: Tensor | None = None


class Method(ABC):
    """How [`metagradient`][fastmeta.metagradient] differentiates a run; holds options only."""

    @property
    @abstractmethod
    def dropped(self) -> str:
        """What is left out, in a sentence."""

    @override
    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class Sweep(Method):
    """A method that goes back through the inner steps.

    Attributes:
        hessians: whether the inner gradients are differentiated with respect to the parameters.
    """

    hessians: bool


class Exact(Sweep):
    """The derivatives of the whole run, up to rounding."""

    hessians = True

    @property
    @override
    def dropped(self) -> str:
        return "Nothing: the derivatives are exact up to rounding."


class FirstOrder(Sweep):
    """Leaves out the Hessians of the inner losses with respect to the parameters.

    The derivatives pass through the updates of all inner steps, and through the inner gradients to
    the meta-parameters. With respect to the initial parameters it is FOMAML for gradient descent
    (Finn et al. 2017, section 5.2).
    """

    hessians = False

    @property
    @override
    def dropped(self) -> str:
        return (
            "The Hessians of the inner losses: how the parameters before an inner step change its "
            "gradient."
        )


class EndDerivatives(NamedTuple):
    """Derivatives of the outer loss through the end of a run; `None` means zero.

    Attributes:
        meta: with respect to the meta-parameters.
        rates: with respect to the inner optimizer's learned settings.
        residual: see `Info`.
    """

    meta: Sequence[Tensor | None]
    rates: Sequence[Tensor]
    residual: Tensor | None


@dataclass(frozen=True)
class RunEnd:
    """The end of an inner run.

    Attributes:
        replay: repeats the inner losses.
        parts: functions whose sum is the inner loss.
        snapshot: the random numbers and buffers of all evaluations there.
        optimizer: the inner optimizer.
        params: the last parameters, leaves.
        state: of the optimizer.
        step: number of inner steps taken, with those of a run that is continued.
        steps: those of this run.
        meta: the meta-parameters, leaves.
    """

    replay: Replay
    parts: Sequence[LossFn]
    snapshot: Snapshot
    optimizer: Adaptation
    params: Sequence[Tensor]
    state: Sequence[Tensor]
    step: int
    steps: int
    meta: Sequence[Tensor]

    def loss(self, back: int = 1) -> LossFn:
        """The inner loss of the step that is `back` before the end, as a function of parameters."""

        def evaluate(params: Sequence[Tensor]) -> Tensor:
            with ExitStack() as stack:
                stack.enter_context(self.replay.returned_to(self.snapshot))
                stack.enter_context(at_step(self.step - back))
                return torch.stack([part(params) for part in self.parts]).sum()

        return evaluate


class AtEnd(Method):
    """A method that differentiates no inner step, but the end of the run as a function of `meta`.

    The initial parameters have derivative zero.
    """

    def check_run(self, steps: int, truncate: int | None, hvp: str) -> None:
        """Rejects a run without inner steps, and options of sweeps.

        Raises:
            ValueError: in that case.
        """
        if truncate is not None or hvp != "reverse" or not steps:
            raise ValueError(
                f"{self} differentiates the end of a run alone; expected at least one batch, and "
                f"neither truncate nor hvp; got {steps} batches, truncate={truncate}, hvp={hvp!r}."
            )

    @abstractmethod
    def derivatives(self, end: RunEnd, v: Sequence[Tensor]) -> EndDerivatives:
        """The derivatives through the last parameters.

        Args:
            end: of a run of at least one inner step.
            v: derivatives of the outer loss with respect to the last parameters.
        """


def left_out(method: Method, hvp: str, skipped: int, steps: int) -> str:
    """What a meta-gradient leaves out, see `Info`.

    Args:
        method: how the run is differentiated.
        hvp: how second derivatives are computed.
        skipped: number of first inner steps that a truncated sweep does not reach.
        steps: number of inner steps.
    """
    if isinstance(method, AtEnd):
        return method.dropped
    sentences = []
    if skipped:
        sentences.append(f"The influence of the first {skipped} of {steps} inner steps.")
    if hvp == "difference":
        sentences.append("Central differences replace second derivatives.")
    if not sentences or not isinstance(method, Exact):
        sentences.append(method.dropped)
    return " ".join(sentences)
