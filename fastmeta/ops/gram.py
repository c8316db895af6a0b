"""The Gram matrix of task gradients, and pairwise cosines and distances from it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.backend import kernels
from fastmeta.ops._function import apply, loop_vmap, needs_autograd, segment_bounds
from fastmeta.reference import accumulation_dtype


def gram(g: Tensor, bounds: Sequence[int] | None = None) -> Tensor:
    """Inner products of all pairs of task gradients, in one pass over the buffer.

    Differentiable. Deterministic: bitwise equal from run to run and for any number of threads.

    Args:
        g: `(T, P)` packed gradients; float64, float32, float16 or bfloat16.
        bounds: `S + 1` increasing column indices from 0 to `P` that split the columns into
            segments, such as `FlatLayout.bounds`; one segment by default.

    Returns:
        `(S, T, T)`, symmetric; float64 for float64, else float32 (accumulated in double).

    Raises:
        RuntimeError: if `g` is not a floating-point matrix or the bounds do not fit it.
    """
    segments = segment_bounds(g, bounds)
    if needs_autograd(g):
        result: Tensor = apply(_Gram, _GramEager, g, segments)
    else:
        result = kernels.gram.default(g, segments)
    return result


def pair_cosines(gram: Tensor) -> Tensor:
    """Cosines of all pairs, `(..., T, T)`, from Gram matrices `(..., T, T)`.

    The cosine with a zero gradient is 0.
    """
    squares = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0)
    zero = squares == 0
    norms = torch.where(zero, 1, squares).sqrt()
    cosines = gram / (norms.unsqueeze(-1) * norms.unsqueeze(-2))
    return torch.where(zero.unsqueeze(-1) | zero.unsqueeze(-2), 0, cosines)


def pair_distances(gram: Tensor) -> Tensor:
    """Squared L2 distances of all pairs, `(..., T, T)`, from Gram matrices `(..., T, T)`.

    `|a|^2 + |b|^2 - 2<a, b>` cancels when two gradients are nearly equal: expect an absolute
    error of about `|a|^2` times the machine epsilon of the dtype.
    """
    squares = gram.diagonal(dim1=-2, dim2=-1)
    return (squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * gram).clamp_min(0)


class _Gram(torch.autograd.Function):
    reference_impl = staticmethod(reference.gram)

    @staticmethod
    def forward(g: Tensor, bounds: tuple[int, ...]) -> Tensor:
        result: Tensor = kernels.gram.default(g, bounds)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        g, ctx.bounds = inputs
        ctx.save_for_backward(g)
        ctx.save_for_forward(g)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (g,) = ctx.saved_tensors
        both = grad + grad.mT
        parts = [
            both[s] @ g[:, begin:end].to(grad.dtype)
            for s, (begin, end) in enumerate(pairwise(ctx.bounds))
        ]
        return torch.cat(parts, dim=1).to(g.dtype), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return loop_vmap(gram, info, in_dims, args)


class _GramEager(_Gram):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (g,) = ctx.saved_tensors
        acc = accumulation_dtype(g.dtype)
        parts = []
        for begin, end in pairwise(ctx.bounds):
            half = tangent[:, begin:end].to(acc) @ g[:, begin:end].to(acc).mT
            parts.append(half + half.mT)
        return torch.stack(parts)


@torch.library.register_fake("fastmeta::gram")
def _(g: Tensor, bounds: Sequence[int]) -> Tensor:
    return g.new_empty(len(bounds) - 1, g.shape[0], g.shape[0], dtype=accumulation_dtype(g.dtype))
