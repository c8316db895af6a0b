"""What the aggregations over the Gram matrix share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

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

    Inner products are summed in float32 (in float64 for float64 gradients), which holds lengths
    from 1e-19 to 1e19; all that follows is float64. Methods that take the matrix to the host say
    so: a ``T x T`` copy a step, which waits for the device.
    """

    def weights(self, rows: TaskGradients) -> Tensor:
        """See :meth:`Aggregation.weights`."""
        found = rows.gram()
        gram = found.double()
        largest = gram.diagonal().amax()
        finite = gram.isfinite().all()
        alike = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        scaled = torch.where(finite & (largest > 0), gram / largest, alike)
        weights = self.from_gram(scaled, len(gram) * _NOISE[found.dtype])
        return torch.where(finite, weights.to(gram.device, non_blocking=True), torch.nan).to(found)

    @abstractmethod
    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        """The weights ``(T,)``, float64.

        Args:
            gram: ``(T, T)``, the inner products in float64, divided by the largest square.
            noise: how far the matrix of cosines, in any direction, may be off.
        """


def directions(gram: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Lengths ``(T,)`` and cosines ``(T, T)`` of the gradients.

    The cosines' diagonal is ``1 + noise``, which makes them positive definite in spite of rounding;
    a zero gradient is orthogonal to all others.
    """
    cosines = ops.pair_cosines(gram)
    return gram.diagonal().sqrt(), cosines.fill_diagonal_(1 + noise)


def per_length(values: Tensor, lengths: Tensor) -> Tensor:
    """``values / lengths``, and 0 for gradients of no length."""
    return torch.where(lengths > 0, values / lengths, 0)
