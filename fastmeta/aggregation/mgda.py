"""MGDA."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.aggregation._quadratic import nonnegative
from fastmeta.aggregation.gram import GramAggregation


class MGDA(GramAggregation):
    """The convex combination of the gradients with minimum norm.

    ``argmin w G w`` over ``w >= 0``, ``sum w = 1``, Desideri 2012; Sener & Koltun 2018 (arXiv
    1810.04650), solved exactly rather than by Frank-Wolfe steps. It conflicts with no task; a zero
    gradient gets all the weight. Solved on the host.
    """

    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        """See :meth:`GramAggregation.from_gram`."""
        definite = gram.cpu() + noise * torch.eye(len(gram), dtype=gram.dtype)
        # Of z = t w the best t leaves -1 / (2 w G w), so that the best z has the best w.
        found = nonnegative(definite, -torch.ones_like(definite[0]))
        return found / found.sum()
