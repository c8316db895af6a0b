"""IMTL-G."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.aggregation.gram import GramAggregation, directions, per_length


class IMTLG(GramAggregation):
    """The direction with equal projections on all gradients.

    ``<d, g_i> / |g_i|`` is the same for all ``i`` and ``sum w = 1``, Liu et al. 2021, "Towards
    Impartial Multi-task Learning": ``w`` proportional to ``G^-1 |g|``. Weights may be negative. If
    their sum before normalisation is negative, which requires gradients of different norms, the
    paper's formula turns ``d`` against all tasks. The scale of a task does not change the line
    along which ``d`` lies; a zero gradient is ignored and gets weight 0. No host sync.
    """

    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        """See :meth:`GramAggregation.from_gram`."""
        lengths, cosines = directions(gram, noise)
        # `solve` waits for the device to learn of singular matrices; this one is not.
        equal, _ = torch.linalg.solve_ex(cosines, torch.ones_like(lengths))
        weights = per_length(equal, lengths)
        return weights / weights.sum()
