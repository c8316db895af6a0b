"""UPGrad."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.aggregation._quadratic import nonnegative
from fastmeta.aggregation.gram import GramAggregation, divide_by_norm, norms_and_cosines


class UPGrad(GramAggregation):
    """The mean of the gradients, each projected onto the directions without conflicts.

    Quinton & Rey 2024 (arXiv 2406.16232): gradient `i` is projected onto the cone of directions
    that conflict with no task, `min v G v` over `v >= e_i / T` (proposition 1), and the `v`
    are summed. It conflicts with no task, and is linear in the norms of the gradients. A zero
    gradient gets weight `1/T`. Solved on the host.
    """

    @override
    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        norms, cosines = norms_and_cosines(gram, noise)
        # Row i is the z with T v = e_i + z |g_i| / |g|, which minimises z C z / 2 + z C e_i over
        # z >= 0, with C the cosines.
        z = torch.stack([nonnegative(cosines, row) for row in cosines])
        return (1 + divide_by_norm(norms @ z, norms)) / len(gram)
