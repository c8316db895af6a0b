"""The losses of a sequence of layers and their first two derivatives, without autograd."""

from __future__ import annotations

import torch
from torch import Tensor

_IGNORED = -100  # torch's default ignore_index


class CrossEntropy:
    """The mean over the examples of each task that count.

    A class out of range makes the results of its task NaN: a check would wait for the GPU.

    Args:
        z: logits `(T, n, classes)`.
        y: classes `(T, n)`.

    Attributes:
        value: `(T,)`.
        gradient: with respect to the logits.
    """

    def __init__(self, z: Tensor, y: Tensor) -> None:
        own = y[..., None] == torch.arange(z.shape[-1], device=z.device)
        counts = y != _IGNORED
        invalid = (counts & ~own.any(-1)).any(1)
        share = counts.sum(1).to(z.dtype).reciprocal().masked_fill(invalid, torch.nan)
        log_p = z.log_softmax(-1)
        self.value = -log_p.masked_fill(~own, 0).sum((1, 2)) * share
        self._p = log_p.exp()
        self._share = share[:, None, None]
        self._ignored = ~counts[..., None]
        self.gradient = self._of_those_that_count(self._p - own.to(z.dtype))

    def gradient_tangent(self, u: Tensor) -> Tensor:
        """The tangent of the gradient along that of the logits."""
        mean = (self._p * u).sum(-1, keepdim=True)
        return self._of_those_that_count(self._p * (u - mean))

    def _of_those_that_count(self, sums: Tensor) -> Tensor:
        return (self._share * sums).masked_fill_(self._ignored, 0)


class MeanSquaredError:
    """The mean over the examples and outputs of each task.

    Args:
        z: outputs `(T, n, out)`.
        y: targets of this shape.

    Attributes:
        value: `(T,)`.
        gradient: with respect to the outputs.
    """

    def __init__(self, z: Tensor, y: Tensor) -> None:
        error = z - y
        self._scale = 2 / z.shape[1:].numel()
        self.value = error.square().mean((1, 2))
        self.gradient = self._scale * error

    def gradient_tangent(self, u: Tensor) -> Tensor:
        """The tangent of the gradient along that of the outputs."""
        return self._scale * u


# By the names in fastmeta.reference.mlp.LOSSES.
LOSSES: dict[str, type[MeanSquaredError | CrossEntropy]] = {
    "mse": MeanSquaredError,
    "cross_entropy": CrossEntropy,
}
