"""Aligned-MTL."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.aggregation.gram import GramAggregation


class AlignedMTL(GramAggregation):
    """The mean of the gradients, made orthogonal and rescaled to the smallest singular value.

    Senushkin et al. 2023, "Independent Component Alignment for Multi-Task Learning", Algorithm 1:
    with `G = V diag(s^2) V^T`, `w = s_min V diag(1/s) V^T 1/T` over the `s` that are not 0.
    A zero gradient gets weight 0. Solved on the host.
    """

    @override
    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        eigenvalues, vectors = torch.linalg.eigh(gram)  # ascending: the squared singular values
        nonzero = eigenvalues > noise * eigenvalues.amax()
        eigenvalues, vectors = eigenvalues[nonzero], vectors[:, nonzero]
        weights: Tensor = vectors @ ((eigenvalues[0] / eigenvalues).sqrt() * vectors.mean(0))
        return weights
