"""CAGrad."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import override

from fastmeta.aggregation._quadratic import nonnegative
from fastmeta.aggregation.gram import GramAggregation, directions, per_length


class CAGrad(GramAggregation):
    """The best step for the task worst off, near the mean ``g0``.

    ``d = argmax min_i <g_i, d>`` over ``|d - g0| <= c |g0|``, Liu et al. 2021 (arXiv 2110.14048),
    Algorithm 1, without rescaling. ``c = 0`` is the mean, a large ``c`` MGDA's direction. Where the
    paper's dual combination vanishes (it divides by that; a zero gradient is an example) ``d`` is
    the point nearest to ``g0`` that conflicts with no task. Solved on the host.

    Args:
        c: the radius, relative to the mean's length.

    Raises:
        ValueError: if ``c`` is negative or not finite.
    """

    def __init__(self, c: float = 0.4) -> None:
        if not 0 <= c < math.inf:
            raise ValueError(f"c must not be negative or infinite, got {c}.")
        self.c = c

    @override
    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        lengths, cosines = directions(gram, noise)
        mean = gram.mean(1)  # <g_i, g0>
        radius = self.c * mean.mean().clamp_min(0).sqrt()
        # How far from g0 must d be for every <g_i, d> to reach `worst`? That is convex in `worst`,
        # so that Newton's steps, from more than the ball allows, lead down to where it allows it.
        worst = (mean + radius * lengths).amin()
        for _ in range(100):
            pull = nonnegative(cosines, per_length(mean - worst, lengths))
            away = (pull @ cosines @ pull).sqrt()
            if away <= (1 + 1e-9) * radius + 1e-8:
                break
            worst = worst - (away - radius) * away / per_length(pull, lengths).sum()
        return 1 / len(gram) + per_length(pull, lengths)
