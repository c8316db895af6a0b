"""Compositions of torch ops that fastmeta's ops are compared with.

Similarity, weights and combination of packed task gradients, in torch and by fastmeta, write the
combined gradient into a list of tensors with the shapes of the parameters.
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


@torch.enable_grad()
def head_by_autograd(
    x: torch.Tensor,
    _: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    v: torch.Tensor,
    v_bias: torch.Tensor,
) -> list[torch.Tensor]:
    """`d<g, v>` with respect to features, weight and bias of a head: autograd of autograd."""
    tasks, n, _ = x.shape
    leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    leaves.append(torch.zeros_like(v_bias).requires_grad_())
    if tasks == 1:
        losses = F.cross_entropy(F.linear(leaves[0][0], leaves[1][0], leaves[2][0]), y[0])
    else:
        logits = torch.baddbmm(leaves[2].unsqueeze(1), leaves[0], leaves[1].mT)
        losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / n
    grads = torch.autograd.grad(losses, leaves[1:], create_graph=True)
    return list(torch.autograd.grad(grads, leaves, [v, v_bias]))


def _write(combined: torch.Tensor, out: list[torch.Tensor]) -> None:
    for target, part in zip(out, combined.split([t.numel() for t in out]), strict=True):
        target.copy_(part.view_as(target))
