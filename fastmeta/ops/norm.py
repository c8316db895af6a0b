"""BatchNorm with batch statistics, ReLU and max-pooling in one op with fused second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.backend import kernels
from fastmeta.ops._function import apply, batch_first, needs_autograd, split_batch
from fastmeta.ops._torch_derivatives import with_torch_derivatives


def batch_norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, pool: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`relu(batch_norm(x))` with batch statistics (Ioffe & Szegedy 2015, algorithm 1).

    Several tasks run in one call: with `weight` and `bias` of shape `(G, C)`, `x` holds the
    images of `G` groups of equal size, one group after the other, and every group has its own
    statistics. `vmap` makes one such call.

    Forward, backward, double backward and forward mode are kernels of two passes each; third
    derivatives are PyTorch's. Sums are accumulated in double. The output is in channels-last
    format, which the kernels use (other inputs are copied), and does not depend on the number of
    threads.

    Args:
        x: `(N, C, H, W)` or `(G * N, C, H, W)`, not empty; float32 or float64.
        weight: `(C,)` or `(G, C)`, dtype of `x`.
        bias: shape and dtype of `weight`.
        eps: added to the variance.
        pool: whether 2x2 max-pooling with stride 2 follows (odd edges are dropped).

    Returns:
        `z`, shape of `x` or pooled `(..., H // 2, W // 2)`; the batch mean and the biased
        variance, each of the shape of `weight`, for running statistics: no gradient flows through
        them.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match, if the groups do not divide the
            images, or if the images are too small to pool.
        NotImplementedError: if the tensors are on a GPU, and the build has no CUDA kernels.
    """
    if needs_autograd(x, weight, bias):
        z, mean, var = apply(_Norm, _NormEager, x, weight, bias, eps, pool)
    else:
        z, mean, var = kernels.norm_forward.default(x, weight, bias, eps, pool)
    return z, mean, var


def _backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x, weight, bias`, from `dz, x, weight, bias, mean, var, eps, pool`."""
    if needs_autograd(*args[:6]):
        dx, d_weight, d_bias = apply(_Backward, _BackwardEager, *args)
    else:
        dx, d_weight, d_bias = kernels.norm_backward.default(*args)
    return dx, d_weight, d_bias


def _grouped_vmap(
    function: Callable[..., Any], info: Any, in_dims: Sequence[Any], args: Sequence[Any]
) -> tuple[Any, Any]:
    """A `vmap` rule: one call, with one group (or `G` groups) per batch element."""
    *tensors, eps, pool = args
    size = info.batch_size
    batched = [batch_first(t, dim, size) for t, dim in zip(tensors, in_dims, strict=False)]
    one_group = batched[-1].dim() == 2  # the bias or the variance
    outputs = function(*map(_merge_groups, batched), eps, pool)

    def split(t: Tensor) -> Tensor:
        return t if one_group and t.dim() == 2 else split_batch(t, size)

    if isinstance(outputs, Tensor):
        return split(outputs), 0
    return tuple(map(split, outputs)), (0,) * len(outputs)


def _merge_groups(t: Tensor) -> Tensor:
    """`(B, N, C, H, W)` as `(B * N, C, H, W)`, and `(B[, G], C)` as `(B [* G], C)`."""
    if t.dim() < 5:
        return t.flatten(0, -2)
    return t.movedim(2, -1).flatten(0, 1).movedim(-1, 1)  # channels-last if it must copy


# The JVPs along `(u, p, q)` of the output and of the gradients of `x` and `weight`, from `dz, u, p,
# q, x, weight, bias, mean, var, eps, pool`; see `csrc/include/fastmeta/norm.h`.
_second = with_torch_derivatives(
    lambda *args: kernels.norm_second.default(*args),
    lambda *args: reference.norm_second(*args[:7], *args[9:]),
    7,
    _grouped_vmap,
)

# The JVP of the output, from `u, p, q, x, weight, bias, mean, var, eps, pool`.
_tangent = with_torch_derivatives(
    lambda *args: kernels.norm_tangent.default(*args),
    lambda *args: reference.norm_tangent(*args[:6], *args[8:]),
    6,
    _grouped_vmap,
)


class _Norm(torch.autograd.Function):
    reference_impl = staticmethod(reference.batch_norm_relu)

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool) -> Any:
        return tuple(kernels.norm_forward.default(x, weight, bias, eps, pool))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, ctx.eps, ctx.pool = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.save_for_forward(x, weight, bias, mean, var)

    @staticmethod
    def backward(ctx: Any, dz: Tensor, _mean: Any, _var: Any) -> Any:
        return *_backward(dz, *ctx.saved_tensors, ctx.eps, ctx.pool), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _grouped_vmap(_flat, info, in_dims, args)


class _NormEager(_Norm):
    @staticmethod
    def jvp(ctx: Any, u: Tensor, p: Tensor, q: Tensor, _eps: None, _pool: None) -> Any:
        return _tangent(u, p, q, *ctx.saved_tensors, ctx.eps, ctx.pool), None, None


def _flat(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return batch_norm_relu(x, weight, bias, eps, pool=pool)


class _Backward(torch.autograd.Function):
    @staticmethod
    def reference_impl(*args: Any) -> Any:
        return reference.norm_backward(*args[:4], *args[6:])

    @staticmethod
    def forward(*args: Any) -> Any:
        return tuple(kernels.norm_backward.default(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.eps, ctx.pool = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, u: Tensor, p: Tensor, q: Tensor) -> Any:
        dz, *others = ctx.saved_tensors
        # Mean and variance are functions of x: the gradient with respect to x includes theirs.
        return *_second(dz, u, p, q, *others, ctx.eps, ctx.pool), *(None,) * 5

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _grouped_vmap(_backward, info, in_dims, args)


class _BackwardEager(_Backward):
    @staticmethod
    def jvp(ctx: Any, d_dz: Tensor, u: Tensor, p: Tensor, q: Tensor, *_rest: Any) -> Any:
        dz, *others = ctx.saved_tensors
        linear = _backward(d_dz, *others, ctx.eps, ctx.pool)
        _, dx, d_weight = _second(dz, u, p, q, *others, ctx.eps, ctx.pool)
        return linear[0] + dx, linear[1] + d_weight, linear[2]


def _images(x: Tensor, pool: bool = False) -> Tensor:
    n, c, h, w = x.shape
    shape = (n, c, h // 2, w // 2) if pool else x.shape
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.register_fake("fastmeta::norm_forward")
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool) -> list[Tensor]:
    return [_images(x, pool), weight.new_empty(weight.shape), weight.new_empty(weight.shape)]


@torch.library.register_fake("fastmeta::norm_backward")
def _(dz: Tensor, x: Tensor, weight: Tensor, *_: Any) -> list[Tensor]:
    return [_images(x), weight.new_empty(weight.shape), weight.new_empty(weight.shape)]


@torch.library.register_fake("fastmeta::norm_second")
def _(
    dz: Tensor, u: Tensor, p: Tensor, q: Tensor, x: Tensor, weight: Tensor, *_: Any
) -> list[Tensor]:
    return [_images(dz), _images(x), weight.new_empty(weight.shape)]


@torch.library.register_fake("fastmeta::norm_tangent")
def _(u: Tensor, p: Tensor, q: Tensor, x: Tensor, *args: Any) -> Tensor:
    return _images(x, args[-1])
