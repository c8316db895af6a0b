"""Similarity, weights and combination of packed task gradients: in torch, and by fastmeta.

All three write the combined gradient into a list of tensors with the shapes of the parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastmeta import ops


def parameter_shapes(size: int) -> list[torch.Size]:
    """Parameter shapes like a Conv-4's: 17 tensors, from biases to most of the weights."""
    small = [torch.Size((64,))] * 12 + [torch.Size((64, 9))] + [torch.Size((5, 64))]
    rest = size - sum(s.numel() for s in small)
    third = rest // 3
    return [*small, torch.Size((third,)), torch.Size((third,)), torch.Size((rest - 2 * third,))]


def naive(grads: torch.Tensor, out: list[torch.Tensor]) -> None:
    """Cosine with the mean gradient as task weights, composed of the obvious torch calls."""
    mean = grads.mean(0, keepdim=True)
    weights = F.cosine_similarity(grads, mean, dim=1)
    combined = (weights / weights.abs().sum()) @ grads
    _write(combined, out)


def tuned(grads: torch.Tensor, out: list[torch.Tensor]) -> None:
    """The same weights, up to scale, in three matrix-vector passes: the fastest torch we know."""
    dots = grads @ grads.sum(0)
    weights = dots / torch.linalg.vector_norm(grads, dim=1)
    combined = (weights / weights.abs().sum()) @ grads
    _write(combined, out)


def compiled(grads: torch.Tensor, out: list[torch.Tensor]) -> None:
    """fastmeta: two passes over the matrix, written straight into the tensors."""
    stats = ops.mean_similarity(grads)
    cosines = stats[:, 0] / stats[:, 1].sqrt()
    ops.combine_(out, grads, cosines / cosines.abs().sum())


def _write(combined: torch.Tensor, out: list[torch.Tensor]) -> None:
    for target, part in zip(out, combined.split([t.numel() for t in out]), strict=True):
        target.copy_(part.view_as(target))
