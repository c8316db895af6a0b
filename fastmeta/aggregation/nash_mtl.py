"""Nash-MTL."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.aggregation.gram import GramAggregation, divide_by_norm, norms_and_cosines


class NashMTL(GramAggregation):
    """The Nash bargaining solution of the tasks.

    `w` is proportional to `a > 0` with `G a = 1 / a`, Navon et al. 2022 (arXiv 2202.01017),
    Algorithm 1; the weights sum to one. `a` minimises `a G a / 2 - sum log a`, solved exactly
    by Newton's method, which always converges on this function, instead of the paper's sequence of
    convex programs. The scale of a task does not change the direction; a zero gradient is ignored
    and gets weight 0. Solved on the host.
    """

    @override
    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        norms, cosines = norms_and_cosines(gram, noise)
        # Damped Newton on z C z / 2 - sum log z, with z = a |g| and C the cosines.
        z = (len(gram) / cosines.abs().sum()).sqrt().expand_as(norms)
        for _ in range(200):
            grad = cosines @ z - 1 / z
            step = torch.linalg.solve(cosines + torch.diag(z**-2), grad)
            decrement = (grad @ step).clamp_min(0).sqrt()
            z = z - step / (1 + decrement)
            if decrement < 1e-5:  # the next one is of the order of its square
                break
        weights = divide_by_norm(z, norms)
        return weights / weights.sum()
