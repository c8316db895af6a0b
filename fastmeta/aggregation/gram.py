"""Base class of aggregations that need the Gram matrix only."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.aggregation.base import Aggregation
from fastmeta.gradients import TaskGradients

# Error bound of a cosine: rounding of its sums in float32, accuracy of the solves in float64.
_NOISE = {torch.float32: 2e-7, torch.float64: 2e-10}


class GramAggregation(Aggregation):
    """An aggregation computed from the inner products of the meta-gradients only.

    All share one scale: for orthogonal gradients of equal norm the weights are ``1/T`` (for CAGrad
    ``(1 + c)/T``), as in :class:`Mean`, so that methods can be exchanged without changing the
    learning rate. Two papers are adapted accordingly: the sum over tasks of PCGrad is a mean here,
    and the weights of Nash-MTL, whose scale the paper leaves to the learning rate, sum to one. A
    factor common to all gradients never changes the weights.

    Zero gradients are treated as orthogonal to all others (the effect is documented per method); if
    all are zero, as orthogonal and of equal norm. If one is not finite, all weights are NaN. For
    linearly dependent gradients the weights are not unique, but their weighted sum is.

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
    """Norms ``(T,)`` and cosines ``(T, T)`` of the gradients.

    The diagonal of the cosines is ``1 + noise``, which makes them positive definite despite
    rounding; a zero gradient is orthogonal to all others.
    """
    cosines = ops.pair_cosines(gram)
    return gram.diagonal().sqrt(), cosines.fill_diagonal_(1 + noise)


def per_length(values: Tensor, lengths: Tensor) -> Tensor:
    """``values / lengths``, and 0 for zero gradients."""
    return torch.where(lengths > 0, values / lengths, 0)
