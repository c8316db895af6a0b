"""The result of a run that was differentiated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from typing_extensions import override

from fastmeta.trajectory.methods import Info


@dataclass(frozen=True)
class InnerState:
    """Where an inner run ended, for a run that continues it.

    Attributes:
        step: number of inner steps so far.
        optimizer: the inner optimizer's state.
    """

    step: int
    optimizer: tuple[Tensor, ...]


@dataclass(frozen=True)
class Metagradient:
    """The result of [`metagradient`][fastmeta.metagradient]; all tensors are detached.

    Attributes:
        params: derivatives of the outer loss with respect to the initial parameters, in their
            structure.
        meta: with respect to the meta-parameters, in theirs.
        outer_loss: the sum of the outer losses.
        outer_losses: these, by number of inner steps before them.
        inner_losses: `(K,)`, before each inner step.
        final_params: the parameters after the last inner step.
        state: for a run that continues this one.
        info: what is left out of the exact derivatives.
    """

    params: Any
    meta: Any
    outer_loss: Tensor
    outer_losses: dict[int, Tensor]
    inner_losses: Tensor
    final_params: Any
    state: InnerState
    info: Info

    @override
    def __repr__(self) -> str:
        steps = len(self.inner_losses)
        return f"Metagradient(outer_loss={self.outer_loss.item():.6g}, inner_steps={steps})"
