"""Layer normalisation and RMS normalisation with fused first and second derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta._checks import check_number
from fastmeta.backend import kernels
from fastmeta.ops._function import apply, merged_vmap, needs_autograd
from fastmeta.ops._torch_derivatives import with_torch_derivatives


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalisation over the last dimensions (Ba et al. 2016).

    Arguments are those of `torch.nn.functional.layer_norm`. Forward, backward, double backward and
    forward mode (of forward and of backward) are kernels of one pass over the rows; third
    derivatives are PyTorch's. `vmap` makes one call. Half precision is computed in float32. Results
    do not depend on the number of threads.

    Args:
        x: `(..., *normalized_shape)`; float64, float32, float16 or bfloat16.
        normalized_shape: sizes of the last dimensions.
        weight: of this shape; dtype of `x`, or float32 for half precision. `None` for ones.
        bias: shape and dtype of `weight`; `None` for zeros.
        eps: added to the variance.

    Returns:
        Shape and dtype of `x`.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match.
        ValueError: if `eps` is not a finite number.
        NotImplementedError: if the tensors are on a GPU, and the build has no CUDA kernels.
    """
    return _row_norm("layer_norm", x, normalized_shape, weight, bias, True, eps)


def rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """RMS normalisation over the last dimensions (Zhang & Sennrich 2019).

    Arguments are those of `torch.nn.functional.rms_norm`; otherwise as
    [`layer_norm`][fastmeta.ops.layer_norm].

    Args:
        x: `(..., *normalized_shape)`; float64, float32, float16 or bfloat16.
        normalized_shape: sizes of the last dimensions.
        weight: of this shape; dtype of `x`, or float32 for half precision. `None` for ones.
        eps: added to the mean of squares; by default that of the dtype of `x`.

    Returns:
        Shape and dtype of `x`.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match.
        ValueError: if `eps` is not a finite number.
        NotImplementedError: if the tensors are on a GPU, and the build has no CUDA kernels.
    """
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _row_norm("rms_norm", x, normalized_shape, weight, None, False, eps)


def _row_norm(
    name: str,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    centred: bool,
    eps: float,
) -> Tensor:
    check_number("eps", eps)
    shape = tuple(normalized_shape)
    width = prod(shape)
    given = [t for t in (weight, bias) if t is not None]
    if not shape or width == 0 or x.shape[-len(shape) :] != shape:
        raise RuntimeError(
            f"fastmeta: {name}: expected an input that ends with the dimensions {shape}, at least "
            f"one and none of them empty, got {tuple(x.shape)}."
        )
    if any(t.shape != shape or t.dtype != given[0].dtype for t in given):
        found = " and ".join(f"{tuple(t.shape)} of {t.dtype}" for t in given)
        raise RuntimeError(
            f"fastmeta: {name}: expected weight and bias of shape {shape} and one dtype, got "
            f"{found}."
        )
    like = given[0] if given else x
    weight = like.new_ones(1, width) if weight is None else weight.reshape(1, width)
    bias = like.new_zeros(1, width) if bias is None else bias.reshape(1, width)
    y, _ = _forward(x.reshape(1, -1, width), weight, bias, centred, float(eps))
    return y.reshape(x.shape)


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    """Output and row statistics, from `x, weight, bias, centred, eps`."""
    if needs_autograd(*args[:3]):
        y, stats = apply(_RowNorm, _RowNormEager, *args)
    else:
        y, stats = kernels.row_norm_forward.default(*args)
    return y, stats


def _backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x, weight, bias`, from `dy, x, weight, stats, centred, eps`."""
    if needs_autograd(*args[:3]):
        dx, dweight, dbias = apply(_Backward, _BackwardEager, *args)
    else:
        dx, dweight, dbias = kernels.row_norm_backward.default(*args[:-1])
    return dx, dweight, dbias


# The JVP of the output, from `tx, tweight, tbias, x, weight, stats, centred, eps`.
_tangent = with_torch_derivatives(
    lambda *args: kernels.row_norm_tangent.default(*args[:-1]),
    lambda *args: reference.row_norm_tangent(*args[:5], *args[6:]),
    5,
    merged_vmap,
)

# The JVPs of the output and of the gradients of `x`, `weight` and `bias`, from `dy, tdy, tx,
# tweight, tbias, x, weight, stats, centred, eps`; `tdy` may be `None`.
_second = with_torch_derivatives(
    lambda *args: kernels.row_norm_second.default(*args[:-1]),
    lambda *args: reference.row_norm_second(*args[:7], *args[8:]),
    7,
    merged_vmap,
)


class _RowNorm(torch.autograd.Function):
    @staticmethod
    def reference_impl(*args: Any) -> Any:
        return reference.row_norm(*args), args[0].new_empty(0)

    @staticmethod
    def forward(*args: Any) -> Any:
        return tuple(kernels.row_norm_forward.default(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, ctx.centred, ctx.eps = inputs
        stats = output[1]
        ctx.mark_non_differentiable(stats)
        ctx.save_for_backward(x, weight, stats)
        ctx.save_for_forward(x, weight, stats)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _stats: Any) -> Any:
        return *_backward(dy, *ctx.saved_tensors, ctx.centred, ctx.eps), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return merged_vmap(_forward, info, in_dims, args)


class _RowNormEager(_RowNorm):
    @staticmethod
    def jvp(ctx: Any, tx: Tensor, tweight: Tensor, tbias: Tensor, *_rest: Any) -> Any:
        return _tangent(tx, tweight, tbias, *ctx.saved_tensors, ctx.centred, ctx.eps), None


class _Backward(torch.autograd.Function):
    @staticmethod
    def reference_impl(*args: Any) -> Any:
        return reference.row_norm_backward(*args[:3], *args[4:])

    @staticmethod
    def forward(*args: Any) -> Any:
        return tuple(kernels.row_norm_backward.default(*args[:-1]))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.centred, ctx.eps = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, tx: Tensor, tweight: Tensor, tbias: Tensor) -> Any:
        dy, *others = ctx.saved_tensors
        # The statistics are functions of x, whose gradient includes theirs.
        options = ctx.centred, ctx.eps
        return *_second(dy, None, tx, tweight, tbias, *others, *options)[:3], None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return merged_vmap(_backward, info, in_dims, args)


class _BackwardEager(_Backward):
    @staticmethod
    def jvp(ctx: Any, tdy: Tensor, tx: Tensor, tweight: Tensor, *_rest: Any) -> Any:
        dy, *others = ctx.saved_tensors
        directions = tdy, tx, tweight, torch.zeros_like(tweight)
        return _second(dy, *directions, *others, ctx.centred, ctx.eps)[1:]


@torch.library.register_fake("fastmeta::row_norm_forward")
def _(x: Tensor, *_: Any) -> list[Tensor]:
    stats = x.new_empty(x.shape[0], 2, x.shape[1], dtype=reference.accumulation_dtype(x.dtype))
    return [x.new_empty(x.shape), stats]


@torch.library.register_fake("fastmeta::row_norm_backward")
def _(dy: Tensor, x: Tensor, weight: Tensor, *_: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (x, weight, weight)]


@torch.library.register_fake("fastmeta::row_norm_tangent")
def _(tx: Tensor, *_: Any) -> Tensor:
    return tx.new_empty(tx.shape)


@torch.library.register_fake("fastmeta::row_norm_second")
def _(dy: Tensor, tdy: Any, tx: Tensor, tweight: Tensor, *_: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (tx, tx, tweight, tweight)]
