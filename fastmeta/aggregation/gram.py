"""Base class of aggregations that need the Gram matrix only."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta.aggregation.base import Aggregation
from fastmeta.gradients import TaskGradients

# Error bound of a cosine: rounding of its sums in float32, accuracy of the solves in float64.
_NOISE = {torch.float32: 2e-7, torch.float64: 2e-10}


class GramAggregation(Aggregation):
    """An aggregation computed from the inner products of the meta-gradients only.

    All share one scale: for orthogonal gradients of equal norm the weights are `1/T` (for CAGrad
    `(1 + c)/T`), as in [`Mean`][fastmeta.aggregation.Mean], so that methods can be exchanged
    without changing the learning rate. Two papers are adapted accordingly: the sum over tasks of
    PCGrad is a mean here, and the weights of Nash-MTL, whose scale the paper leaves to the learning
    rate, sum to one. A factor common to all gradients never changes the weights.

    Zero gradients are treated as orthogonal to all others (the effect is documented per method); if
    all are zero, as orthogonal and of equal norm. If one is not finite, all weights are NaN. For
    linearly dependent gradients the weights are not unique, but their weighted sum is.

    Inner products are summed in float32 (in float64 for float64 gradients), which represents norms
    from 1e-19 to 1e19; all further computations are in float64. Methods that copy the matrix to the
    host say so: one `T x T` copy per meta-step, with a host sync.

    Attributes:
        on_host: whether `from_gram` is given the matrix on the CPU.
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
        """The weights, float64, one per row of `gram`.

        Args:
            gram: `(T, T)`, the inner products in float64, divided by the largest squared norm.
                Tasks that are left out are not included; without `on_host` they are zero
                gradients.
            noise: error bound of the matrix of cosines, in spectral norm.
        """


def norms_and_cosines(gram: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Lengths `(T,)` and cosines `(T, T)` of the gradients.

    The diagonal of the cosines is `1 + noise`, which makes them positive definite despite
    rounding; a zero gradient is orthogonal to all others.
    """
    cosines = ops.pair_cosines(gram)
    return gram.diagonal().sqrt(), cosines.fill_diagonal_(1 + noise)


def divide_by_norm(values: Tensor, norms: Tensor) -> Tensor:
    """`values / norms`, and 0 for zero gradients."""
    return torch.where(norms > 0, values / norms, 0)
