"""What the aggregations over the Gram matrix share."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta.aggregation.base import Aggregation
from fastmeta.gradients import TaskGradients

# How far a cosine may be off: in float32 the rounding of its sums, in float64 what solves resolve.
_NOISE = {torch.float32: 2e-7, torch.float64: 2e-10}


class GramAggregation(Aggregation):
    """An aggregation that knows the meta-gradients by their inner products alone.

    All keep one scale: where the gradients are orthogonal and equally long, the weights are ``1/T``
    (of CAGrad ``(1 + c)/T``), as in :class:`Mean`, so that methods can be exchanged under one
    learning rate. Two papers are read accordingly: PCGrad's sum over tasks is our mean, and
    Nash-MTL's weights, whose length that paper leaves to the learning rate, sum to one. A factor
    common to all gradients never changes the weights.

    Zero gradients count as orthogonal ones of no length (each method says what follows); if all are
    zero, as orthogonal and equally long. If one is not finite, all weights are NaN. If gradients
    depend on each other linearly, many weights have one sum; it is the sum that is defined.

    Inner products are summed in float32 (in float64 for float64 gradients), which represents norms
    from 1e-19 to 1e19; all further computations are in float64. Methods that copy the matrix to the
    host say so: one ``T x T`` copy per meta-step, with a host sync.

    Attributes:
        on_host: whether :meth:`from_gram` is given the matrix on the CPU.
    """

    on_host: ClassVar[bool] = True

    @override
    def weights(self, gradients: TaskGradients) -> Tensor:
        raw, finite = gradients.gram(), gradients.finite
        gram = raw.double()
        if self.on_host:
            gram = gram.cpu()
            if finite is not None:
                kept = finite.cpu()
                gram = gram[kept][:, kept]
        if len(gram) == 0:
            return torch.zeros_like(raw[0])
        largest = gram.diagonal().amax()
        valid = gram.isfinite().all()
        orthonormal = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        scaled = torch.where(valid & (largest > 0), gram / largest, orthonormal)
        weights = self.from_gram(scaled, len(gram) * _NOISE[raw.dtype])
        weights = torch.where(valid, weights, torch.nan)
        if self.on_host:
            if finite is not None:
                weights = torch.zeros(len(raw), dtype=weights.dtype).masked_scatter(kept, weights)
            weights = weights.to(raw.device, non_blocking=True)
        elif finite is not None:
            weights = torch.where(finite, weights, 0)
        return weights.to(raw)

    @abstractmethod
    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        """The weights, float64, one per row of ``gram``.

        Args:
            gram: ``(T, T)``, the inner products in float64, divided by the largest squared norm.
                Tasks that are left out are not included; without :attr:`on_host` they are zero
                gradients.
            noise: error bound of the matrix of cosines, in spectral norm.
        """


def norms_and_cosines(gram: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Lengths ``(T,)`` and cosines ``(T, T)`` of the gradients.

    The cosines' diagonal is ``1 + noise``, which makes them positive definite in spite of rounding;
    a zero gradient is orthogonal to all others.
    """
    cosines = ops.pair_cosines(gram)
    return gram.diagonal().sqrt(), cosines.fill_diagonal_(1 + noise)


def divide_by_norm(values: Tensor, norms: Tensor) -> Tensor:
    """``values / norms``, and 0 for zero gradients."""
    return torch.where(norms > 0, values / norms, 0)
