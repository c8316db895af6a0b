"""Similarities of corresponding task gradients, and of each task gradient with the mean."""

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


def row_similarity(a: Tensor, b: Tensor, bounds: Sequence[int] | None = None) -> Tensor:
    """Inner products and squared norms of the `i`-th gradients of two buffers, in one pass.

    Compares, for example, the support with the query gradient of each task.

    Differentiable and deterministic.

    Args:
        a: `(T, P)` packed gradients; float64, float32, float16 or bfloat16.
        b: the same shape, dtype and device.
        bounds: `S + 1` increasing column indices from 0 to `P`, the bounds of `S` segments
            ("layers"); one segment by default.

    Returns:
        `(T, S, 3)`: `<a_i, b_i>`, `|a_i|^2` and `|b_i|^2` over each segment; float64 for
        float64, else float32 (accumulated in double). Sum over `S` for the full vectors.

    Raises:
        RuntimeError: if shapes, dtypes, devices or bounds do not match.
    """
    segments = segment_bounds(a, bounds)
    if needs_autograd(a, b):
        result: Tensor = apply(_RowSimilarity, _RowSimilarityEager, a, b, segments)
    else:
        result = kernels.row_similarity.default(a, b, segments)
    return result


def mean_similarity(g: Tensor) -> Tensor:
    """Inner product of each task gradient with their sum, and its squared norm, in one pass.

    Gradient Agreement and the GSL task weights need no more of the Gram matrix than this, which
    costs `O(TP)` instead of `O(T^2 P)`. Differentiable and deterministic.

    Args:
        g: `(T, P)` packed gradients; float64, float32, float16 or bfloat16.

    Returns:
        `(T, 2)`: `<g_i, sum_j g_j>` and `|g_i|^2`; float64 for float64, else float32.

    Raises:
        RuntimeError: if `g` is not a floating-point matrix.
    """
    if needs_autograd(g):
        result: Tensor = apply(_MeanSimilarity, _MeanSimilarityEager, g)
    else:
        result = kernels.mean_similarity.default(g)
    return result


def _columns(per_segment: Tensor, bounds: tuple[int, ...]) -> Tensor:
    """Per-segment values `(T, S)` expanded to columns, `(T, P)` (or `(T, 1)` if S = 1)."""
    if len(bounds) == 2:
        return per_segment
    sizes = [end - begin for begin, end in pairwise(bounds)]
    parts = [per_segment[:, s : s + 1].expand(-1, n) for s, n in enumerate(sizes)]
    return torch.cat(parts, dim=1)


class _RowSimilarity(torch.autograd.Function):
    reference_impl = staticmethod(reference.row_similarity)

    @staticmethod
    def forward(a: Tensor, b: Tensor, bounds: tuple[int, ...]) -> Tensor:
        result: Tensor = kernels.row_similarity.default(a, b, bounds)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        a, b, ctx.bounds = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        dot, aa, bb = (_columns(part, ctx.bounds) for part in grad.unbind(-1))
        x, y = a.to(grad.dtype), b.to(grad.dtype)
        return (dot * y + 2 * aa * x).to(a.dtype), (dot * x + 2 * bb * y).to(b.dtype), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return loop_vmap(row_similarity, info, in_dims, args)


class _RowSimilarityEager(_RowSimilarity):
    @staticmethod
    def jvp(ctx: Any, da: Tensor, db: Tensor, _: None) -> Tensor:
        a, b = ctx.saved_tensors
        acc = accumulation_dtype(a.dtype)
        a, b, da, db = a.to(acc), b.to(acc), da.to(acc), db.to(acc)
        products = torch.stack([da * b + a * db, 2 * a * da, 2 * b * db], dim=-1)
        return torch.stack([products[:, i:j].sum(1) for i, j in pairwise(ctx.bounds)], dim=1)


class _MeanSimilarity(torch.autograd.Function):
    reference_impl = staticmethod(reference.mean_similarity)

    @staticmethod
    def forward(g: Tensor) -> Tensor:
        result: Tensor = kernels.mean_similarity.default(g)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (g,) = ctx.saved_tensors
        x = g.to(grad.dtype)
        dot, square = grad.unbind(-1)
        common = (dot @ x).unsqueeze(0)
        result = dot.unsqueeze(1) * x.sum(0) + common + 2 * square.unsqueeze(1) * x
        return result.to(g.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return loop_vmap(mean_similarity, info, in_dims, args)


class _MeanSimilarityEager(_MeanSimilarity):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (g,) = ctx.saved_tensors
        x, dx = (t.to(accumulation_dtype(g.dtype)) for t in (g, tangent))
        return torch.stack([dx @ x.sum(0) + x @ dx.sum(0), 2 * (x * dx).sum(1)], dim=1)


@torch.library.register_fake("fastmeta::row_similarity")
def _(a: Tensor, b: Tensor, bounds: Sequence[int]) -> Tensor:
    return a.new_empty(a.shape[0], len(bounds) - 1, 3, dtype=accumulation_dtype(a.dtype))


@torch.library.register_fake("fastmeta::mean_similarity")
def _(g: Tensor) -> Tensor:
    return g.new_empty(g.shape[0], 2, dtype=accumulation_dtype(g.dtype))
