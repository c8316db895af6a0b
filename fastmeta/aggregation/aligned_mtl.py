"""Aligned-MTL."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.aggregation.gram import GramAggregation


class AlignedMTL(GramAggregation):
    """The mean of the gradients, made orthogonal and rescaled to the smallest singular value.

    Senushkin et al. 2023, "Independent Component Alignment for Multi-Task Learning", Algorithm 1:
    with ``G = V diag(s^2) V^T``, ``w = s_min V diag(1/s) V^T 1/T`` over the ``s`` that are not 0.
    A zero gradient gets weight 0. Solved on the host.
    """

    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        """See :meth:`GramAggregation.from_gram`."""
        squares, vectors = torch.linalg.eigh(gram.cpu())
        some = squares > noise * squares.amax()
        squares, vectors = squares[some], vectors[:, some]
        weights: Tensor = vectors @ ((squares[0] / squares).sqrt() * vectors.mean(0))
        return weights
