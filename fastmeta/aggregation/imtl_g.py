"""IMTL-G."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.aggregation.gram import GramAggregation, divide_by_norm, norms_and_cosines


class IMTLG(GramAggregation):
    """The direction with equal projections on all gradients.

    `<d, g_i> / |g_i|` is the same for all `i` and `sum w = 1`, Liu et al. 2021, "Towards
    Impartial Multi-task Learning": `w` proportional to `G^-1 |g|`. Weights may be negative. If
    their sum before normalisation is negative, which requires gradients of different norms, the
    paper's formula turns `d` against all tasks. The scale of a task does not change the line
    along which `d` lies; a zero gradient is ignored and gets weight 0. No host sync.
    """

    on_host = False

    @override
    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        norms, cosines = norms_and_cosines(gram, noise)
        # `solve` would sync to check for singular matrices; this one is positive definite.
        solution, _ = torch.linalg.solve_ex(cosines, torch.ones_like(norms))
        weights = divide_by_norm(solution, norms)
        return weights / weights.sum()
