"""MGDA."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.aggregation._quadratic import nonnegative
from fastmeta.aggregation.gram import GramAggregation


class MGDA(GramAggregation):
    """The convex combination of the gradients with minimum norm.

    `argmin w G w` over `w >= 0`, `sum w = 1`, Desideri 2012; Sener & Koltun 2018 (arXiv
    1810.04650), solved exactly rather than by Frank-Wolfe steps. It conflicts with no task; a zero
    gradient gets all the weight. Solved on the host.
    """

    @override
    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        definite = gram + noise * torch.eye(len(gram), dtype=gram.dtype)
        # min z G z / 2 - sum z over z >= 0: for z = t w with sum w = 1 the minimum over t is
        # -1 / (2 w G w), so the optimal z is a multiple of the optimal w.
        z = nonnegative(definite, -torch.ones_like(definite[0]))
        return z / z.sum()
