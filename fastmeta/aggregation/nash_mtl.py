"""Nash-MTL."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.aggregation.gram import GramAggregation, directions, per_length


class NashMTL(GramAggregation):
    """The tasks' bargaining solution: ``w`` proportional to ``a > 0`` with ``G a = 1 / a``.

    Navon et al. 2022 (arXiv 2202.01017), Algorithm 1; the weights sum to one. ``a`` minimises
    ``a G a / 2 - sum log a``, solved exactly by Newton's method, which always converges on this
    function, in place of the paper's sequence of convex programmes. A task's scale does not change
    the direction; a zero gradient has no say, and the weight 0. Solved on the host.
    """

    @override
    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        lengths, cosines = directions(gram, noise)
        share = (len(gram) / cosines.abs().sum()).sqrt().expand_as(lengths)
        for _ in range(200):
            slope = cosines @ share - 1 / share
            step = torch.linalg.solve(cosines + torch.diag(share**-2), slope)
            decrement = (slope @ step).clamp_min(0).sqrt()
            share = share - step / (1 + decrement)
            if decrement < 1e-5:  # is then squared
                break
        weights = per_length(share, lengths)
        return weights / weights.sum()
