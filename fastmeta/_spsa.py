"""Loss weights by simultaneous perturbation (SPSA), of tasks and of classes."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Literal, get_args

import torch
from torch import Tensor

from fastmeta._checks import check_choice, check_integer, check_nonnegative, check_positive

Mode = Literal["delta", "track"]
NAMES = ("spsa_v", "spsa_losses", "spsa_step")
"""The entries of the state."""


class SPSA:
    """Moves `v` towards the minimum of `J(v; l) = sum_j p_j [l_j / v_j^2 + ln v_j^2]`.

    Boiarov, Khabarlak, Yastrebov 2021 (arXiv 2110.13188). The options are those of
    `fastmeta.aggregation.SPSAWeights`.

    Raises:
        ValueError: if one is out of range.
    """

    def __init__(
        self, mode: Mode, alpha: float, beta: float, rescale_every: int, seed: int
    ) -> None:
        check_choice("mode", mode, get_args(Mode))
        check_nonnegative("alpha", alpha)
        check_positive("beta", beta)
        check_integer("rescale_every", rescale_every, 1)
        check_integer("seed", seed, 0)
        self.mode = mode
        self.alpha, self.beta = alpha, beta
        self.rescale_every = rescale_every
        self.seed = seed

    def advance(
        self,
        state: MutableMapping[str, Tensor],
        v: Tensor,
        losses: Tensor,
        share: Tensor,
        divisor: float = 1.0,
    ) -> None:
        """One step, in the places with a share.

        Args:
            state: holds the new `v`, the losses and the number of steps.
            v: float64, before the step.
            losses: of the places; those without a share do not matter.
            share: `p`, whose sum is one.
            divisor: of the step.
        """
        losses = torch.where(share > 0, losses, state.get("spsa_losses", torch.ones_like(v)))
        before = state.get("spsa_losses", losses) if self.mode == "track" else losses
        step = int(state.get("spsa_step", 0)) + 1
        moved = v - self._step(v, step, before, losses, share) / divisor
        moved = torch.where((share > 0) & moved.isfinite(), moved, v)
        state["spsa_v"] = moved / moved.norm() if step % self.rescale_every == 0 else moved
        state["spsa_losses"] = losses
        state["spsa_step"] = torch.tensor(step)

    def _step(self, v: Tensor, step: int, before: Tensor, losses: Tensor, share: Tensor) -> Tensor:
        alpha: float = self.alpha / step ** (1 / 6)
        beta: float = self.beta / step ** (1 / 24)
        signs = self._signs(step, v)
        ahead = objective(v + beta * signs, before, share)
        behind = objective(v - beta * signs, losses, share)
        return alpha * signs * (ahead - behind) / (2 * beta)

    def _signs(self, step: int, v: Tensor) -> Tensor:
        """Random signs, the same on all ranks."""
        generator = torch.Generator().manual_seed((self.seed << 32) + step)
        return (2 * torch.randint(2, v.shape, generator=generator) - 1).to(v)


def objective(v: Tensor, losses: Tensor, share: Tensor) -> Tensor:
    """`sum_j p_j [l_j / v_j^2 + ln v_j^2]` over the places with a share `p_j`."""
    square = v.square()
    return torch.where(share > 0, share * (losses / square + square.log()), 0).sum()
