"""Nash-MTL."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.aggregation.gram import GramAggregation, directions, per_length


class NashMTL(GramAggregation):
    """The Nash bargaining solution of the tasks.

    ``w`` is proportional to ``a > 0`` with ``G a = 1 / a``, Navon et al. 2022 (arXiv 2202.01017),
    Algorithm 1; the weights sum to one. ``a`` minimises ``a G a / 2 - sum log a``, solved exactly
    by Newton's method, which always converges on this function, instead of the paper's sequence of
    convex programs. The scale of a task does not change the direction; a zero gradient is ignored
    and gets weight 0. Solved on the host.
    """

    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        """See :meth:`GramAggregation.from_gram`."""
        lengths, cosines = directions(gram.cpu(), noise)
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
