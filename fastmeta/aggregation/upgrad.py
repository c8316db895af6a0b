"""UPGrad."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.aggregation._quadratic import nonnegative
from fastmeta.aggregation.gram import GramAggregation, directions, per_length


class UPGrad(GramAggregation):
    """The mean of the gradients, each projected onto the directions without conflicts.

    Quinton & Rey 2024 (arXiv 2406.16232): gradient ``i`` is projected onto the cone of directions
    that conflict with no task, ``min v G v`` over ``v >= e_i / T`` (proposition 1), and the ``v``
    are summed. It conflicts with no task, and is linear in the norms of the gradients. A zero
    gradient gets weight ``1/T``. Solved on the host.
    """

    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        """See :meth:`GramAggregation.from_gram`."""
        lengths, cosines = directions(gram.cpu(), noise)
        # Row i: by how much T v exceeds e_i, in units of lengths, were g_i of length 1.
        pull = torch.stack([nonnegative(cosines, row) for row in cosines])
        return (1 + per_length(lengths @ pull, lengths)) / len(gram)
