"""The weighted sum of task gradients, written back into a parameter list."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.backend import kernels
from fastmeta.ops._function import (
    apply,
    bump_versions,
    check_same_device,
    loop_vmap,
    needs_autograd,
    segment_bounds,
)
from fastmeta.reference import accumulation_dtype


def combine(
    buffers: Sequence[Tensor] | Tensor, coef: Tensor, bounds: Sequence[int] | None = None
) -> Tensor:
    """`m[p] = sum_i sum_b coef[i, s(p), b] * buffers[b][i, p]` in one pass.

    Differentiable. Tasks are summed in order, so that with unit weights float32 and float64 results
    are bitwise equal to repeated in-place accumulation.

    Args:
        buffers: one `(T, P)` buffer or a list of one or two; float64, float32, float16, bfloat16.
        coef: `(T, S, B)`, or `(T,)` for one buffer and one segment; in the accumulation dtype
            (float64 for float64 buffers, else float32).
        bounds: `S + 1` increasing column indices from 0 to `P`; one segment by default.

    Returns:
        `(P,)` in the buffers' dtype.

    Raises:
        RuntimeError: if shapes, dtypes, devices or bounds do not match.
    """
    buffers, coef, segments = _arguments(buffers, coef, bounds)
    if needs_autograd(coef, *buffers):
        result: Tensor = apply(_Combine, _CombineEager, coef, segments, *buffers)
    else:
        result = kernels.combine.default(buffers, coef, segments)
    return result


def combine_(
    out: Sequence[Tensor],
    buffers: Sequence[Tensor] | Tensor,
    coef: Tensor,
    bounds: Sequence[int] | None = None,
) -> None:
    """`combine` into the contiguous tensors `out`, such as the parameters' `.grad`.

    The tensors receive the columns in list order and have `P` elements in total. Not
    differentiable.

    Raises:
        RuntimeError: if shapes, dtypes, devices or bounds do not match, or an output shares memory
            with another, the buffers or the weights.
    """
    targets = list(out)
    buffers, coef, segments = _arguments(buffers, coef, bounds)
    with torch.no_grad():
        kernels.combine_.default(targets, buffers, coef, segments)
    bump_versions(targets)


def _arguments(
    buffers: Sequence[Tensor] | Tensor, coef: Tensor, bounds: Sequence[int] | None
) -> tuple[list[Tensor], Tensor, tuple[int, ...]]:
    buffers = [buffers] if isinstance(buffers, Tensor) else list(buffers)
    if not buffers:
        raise RuntimeError("fastmeta: combine: expected one or two buffers, got none.")
    coef = coef[:, None, None] if coef.dim() == 1 else coef
    return buffers, coef, segment_bounds(buffers[0], bounds)


class _Combine(torch.autograd.Function):
    @staticmethod
    def reference_impl(coef: Tensor, bounds: tuple[int, ...], *buffers: Tensor) -> Tensor:
        return reference.combine(buffers, coef, bounds)

    @staticmethod
    def forward(coef: Tensor, bounds: tuple[int, ...], *buffers: Tensor) -> Tensor:
        result: Tensor = kernels.combine.default(list(buffers), coef, bounds)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        coef, ctx.bounds, *buffers = inputs
        ctx.save_for_backward(coef, *buffers)
        ctx.save_for_forward(coef, *buffers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        coef, *buffers = ctx.saved_tensors
        wide = grad.to(coef.dtype)
        coef_grads = [
            torch.stack([g[:, begin:end].to(coef.dtype) @ wide[begin:end] for g in buffers], dim=-1)
            for begin, end in pairwise(ctx.bounds)
        ]
        buffer_grads = [
            torch.cat(
                [
                    coef[:, s, b, None] * wide[begin:end]
                    for s, (begin, end) in enumerate(pairwise(ctx.bounds))
                ],
                dim=1,
            ).to(g.dtype)
            for b, g in enumerate(buffers)
        ]
        return torch.stack(coef_grads, dim=1), None, *buffer_grads

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return loop_vmap(_combine_flat, info, in_dims, args)


class _CombineEager(_Combine):
    @staticmethod
    def jvp(ctx: Any, d_coef: Tensor, _: None, *d_buffers: Tensor) -> Tensor:
        coef, *buffers = ctx.saved_tensors
        return reference.combine(buffers, d_coef, ctx.bounds) + reference.combine(
            d_buffers, coef, ctx.bounds
        )


def _combine_flat(coef: Tensor, bounds: tuple[int, ...], *buffers: Tensor) -> Tensor:
    return combine(buffers, coef, bounds)


@torch.library.register_fake("fastmeta::combine")
def _(buffers: Sequence[Tensor], coef: Tensor, bounds: Sequence[int]) -> Tensor:
    torch._check(coef.dtype == accumulation_dtype(buffers[0].dtype))
    return buffers[0].new_empty(buffers[0].shape[1])


@torch.library.register_fake("fastmeta::combine_")
def _(
    out: Sequence[Tensor], buffers: Sequence[Tensor], coef: Tensor, bounds: Sequence[int]
) -> None:
    check_same_device("combine_", *out, *buffers, coef)
