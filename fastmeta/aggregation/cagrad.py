"""CAGrad."""

from __future__ import annotations

from torch import Tensor

from fastmeta._checks import check_nonnegative
from fastmeta.aggregation._quadratic import nonnegative
from fastmeta.aggregation.gram import GramAggregation, directions, per_length


class CAGrad(GramAggregation):
    """The step within a ball around the mean ``g0`` that is best for the worst-off task.

    ``d = argmax min_i <g_i, d>`` over ``|d - g0| <= c |g0|``, Liu et al. 2021 (arXiv 2110.14048),
    Algorithm 1, without rescaling. ``c = 0`` gives the mean, a large ``c`` the direction of MGDA.
    Where the paper's dual combination, by which it divides, vanishes (for example with a zero
    gradient), ``d`` is the point nearest to ``g0`` that conflicts with no task. Solved on the host.

    Args:
        c: radius of the ball relative to the norm of the mean, at least 0.

    Raises:
        ValueError: if ``c`` is not a finite number of at least 0.
    """

    def __init__(self, c: float = 0.4) -> None:
        check_nonnegative("c", c)
        self.c = c

    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        """See :meth:`GramAggregation.from_gram`."""
        gram = gram.cpu()
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
