"""CAGrad."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_nonnegative
from fastmeta.aggregation._quadratic import nonnegative
from fastmeta.aggregation.gram import GramAggregation, divide_by_norm, norms_and_cosines


class CAGrad(GramAggregation):
    """The step within a ball around the mean `g0` that is best for the worst-off task.

    `d = argmax min_i <g_i, d>` over `|d - g0| <= c |g0|`, Liu et al. 2021 (arXiv 2110.14048),
    Algorithm 1, without rescaling. `c = 0` gives the mean, a large `c` the direction of MGDA.
    Where the paper's dual combination, by which it divides, vanishes (for example with a zero
    gradient), `d` is the point nearest to `g0` that conflicts with no task. Solved on the host.

    Args:
        c: radius of the ball relative to the norm of the mean, at least 0.

    Raises:
        ValueError: if `c` is not a finite number of at least 0.
    """

    def __init__(self, c: float = 0.4) -> None:
        check_nonnegative("c", c)
        self.c = c

    @override
    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        norms, cosines = norms_and_cosines(gram, noise)
        mean = gram.mean(1)  # <g_i, g0>
        radius = self.c * mean.mean().clamp_min(0).sqrt()
        # The d nearest to g0 with <g_i, d> >= worst for all i is g0 + sum_i z_i g_i / |g_i|, where
        # z minimises z C z / 2 + sum_i z_i (<g_i, g0> - worst) / |g_i| over z >= 0, with C the
        # cosines. Its distance to g0 is convex in `worst`: Newton's method, from an upper bound,
        # decreases `worst` monotonically to where the distance is the radius.
        worst = (mean + radius * norms).amin()
        for _ in range(100):
            z = nonnegative(cosines, divide_by_norm(mean - worst, norms))
            distance = (z @ cosines @ z).sqrt()
            if distance <= (1 + 1e-9) * radius + 1e-8:
                break
            worst = worst - (distance - radius) * distance / divide_by_norm(z, norms).sum()
        return 1 / len(gram) + divide_by_norm(z, norms)
