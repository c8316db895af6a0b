"""3x3 convolution whose derivatives of every order are compiled ops, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.backend import kernels
from fastmeta.ops._function import apply, batch_first, merge_batch, needs_autograd, split_batch


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """`conv2d(x, weight, bias, stride, padding=1)` with 3x3 kernels, for one or several tasks.

    Stride 1 uses Winograd's F(2x2, 3x3) (Lavin & Gray 2016) where that takes fewer multiplications:
    as accurate as direct summation, but NaN where the direct result is infinite. Sums are
    accumulated in the dtype of `x`, over blocks of pixels: in float32 the error is within 2e-6 of
    the sum of absolute values. The output is in channels-last format, which the kernels use (other
    inputs are copied), and does not depend on the number of threads. CPU only.

    Args:
        x: `(N, C, H, W)`, not empty; float32 or float64. With weights for `G` groups (tasks),
            `(G * N, C, H, W)`: `N` images per group.
        weight: `(O, C, 3, 3)`, dtype of `x`; or `(G, O, C, 3, 3)`.
        bias: `(O,)` or `(G, O)`, dtype of `x`.
        stride: 1 or 2.

    Returns:
        `(N, O, ceil(H / stride), ceil(W / stride))`, or with `G * N` in place of `N`.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match.
        NotImplementedError: if the tensors are on a GPU.
    """
    return _forward(x, weight, bias, stride)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    y: Tensor
    if needs_autograd(x, weight) or (bias is not None and needs_autograd(bias)):
        y = apply(_Forward, _ForwardEager, x, weight, bias, stride)
    else:
        y = kernels.conv_forward.default(x, weight, bias, stride)
    return y


def _input(dy: Tensor, weight: Tensor, h: int, w: int, stride: int) -> Tensor:
    """The gradient with respect to the input, of `h` x `w` pixels."""
    dx: Tensor
    if needs_autograd(dy, weight):
        dx = apply(_Input, _InputEager, dy, weight, h, w, stride)
    else:
        dx = kernels.conv_input.default(dy, weight, h, w, stride)
    return dx


def _weight(x: Tensor, dy: Tensor, stride: int, groups: int | None) -> tuple[Tensor, Tensor]:
    """The gradients with respect to weight and bias."""
    if needs_autograd(x, dy):
        d_weight, d_bias = apply(_Weight, _WeightEager, x, dy, stride, groups)
    else:
        d_weight, d_bias = kernels.conv_weight.default(x, dy, stride, groups)
    return d_weight, d_bias


def _groups(weight: Tensor) -> int | None:
    return weight.shape[0] if weight.dim() == 5 else None


class _Forward(torch.autograd.Function):
    reference_impl = staticmethod(reference.conv3x3)

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        y: Tensor = kernels.conv_forward.default(x, weight, bias, stride)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, _, ctx.stride = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        dx = _input(dy, weight, x.shape[2], x.shape[3], ctx.stride) if needs_x else None
        if not needs_weight and not needs_bias:
            return dx, None, None, None
        d_weight, d_bias = _weight(x, dy, ctx.stride, _groups(weight))
        return dx, d_weight, d_bias if needs_bias else None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, weight: Tensor, bias: Any, stride: int) -> Any:
        size, (x_dim, weight_dim, bias_dim, _) = info.batch_size, in_dims
        images = merge_batch(x, x_dim, size)
        if weight.dim() == 4 and weight_dim is None and bias_dim is None:
            return split_batch(_forward(images, weight, bias, stride), size), 0
        weights = _group(weight, weight_dim, size, 4)
        biases = None if bias is None else _group(bias, bias_dim, size, 1)
        return split_batch(_forward(images, weights, biases, stride), size), 0


class _ForwardEager(_Forward):
    @staticmethod
    def jvp(ctx: Any, u: Tensor, p: Tensor, q: Tensor | None, _stride: None) -> Tensor:
        x, weight = ctx.saved_tensors
        return _forward(u, weight, q, ctx.stride) + _forward(x, p, None, ctx.stride)


class _Input(torch.autograd.Function):
    reference_impl = staticmethod(reference.conv_input)

    @staticmethod
    def forward(dy: Tensor, weight: Tensor, h: int, w: int, stride: int) -> Tensor:
        dx: Tensor = kernels.conv_input.default(dy, weight, h, w, stride)
        return dx

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        dy, weight, *ctx.sizes, ctx.stride = inputs
        ctx.save_for_backward(dy, weight)
        ctx.save_for_forward(dy, weight)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        dy, weight = ctx.saved_tensors
        needs_dy, needs_weight, *_ = ctx.needs_input_grad
        d_dy = _forward(u, weight, None, ctx.stride) if needs_dy else None
        d_weight = _weight(u, dy, ctx.stride, _groups(weight))[0] if needs_weight else None
        return d_dy, d_weight, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, dy: Tensor, weight: Tensor, *sizes: int) -> Any:
        size, (dy_dim, weight_dim, *_) = info.batch_size, in_dims
        if weight.dim() == 5 or weight_dim is not None:
            weight = _group(weight, weight_dim, size, 4)
        return split_batch(_input(merge_batch(dy, dy_dim, size), weight, *sizes), size), 0


class _InputEager(_Input):
    @staticmethod
    def jvp(ctx: Any, d_dy: Tensor, p: Tensor, *_rest: None) -> Tensor:
        dy, weight = ctx.saved_tensors
        rest = (*ctx.sizes, ctx.stride)
        return _input(d_dy, weight, *rest) + _input(dy, p, *rest)


class _Weight(torch.autograd.Function):
    reference_impl = staticmethod(reference.conv_weight)

    @staticmethod
    def forward(x: Tensor, dy: Tensor, stride: int, groups: int | None) -> Any:
        return tuple(kernels.conv_weight.default(x, dy, stride, groups))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, dy, ctx.stride, ctx.groups = inputs
        ctx.save_for_backward(x, dy)
        ctx.save_for_forward(x, dy)

    @staticmethod
    def backward(ctx: Any, p: Tensor, q: Tensor) -> Any:
        x, dy = ctx.saved_tensors
        needs_x, needs_dy, *_ = ctx.needs_input_grad
        dx = _input(dy, p, x.shape[2], x.shape[3], ctx.stride) if needs_x else None
        return dx, _forward(x, p, q, ctx.stride) if needs_dy else None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, dy: Tensor, stride: int, groups: Any) -> Any:
        size, (x_dim, dy_dim, *_) = info.batch_size, in_dims
        images, gradients = merge_batch(x, x_dim, size), merge_batch(dy, dy_dim, size)
        parts = _weight(images, gradients, stride, size * (groups or 1))
        return (parts if groups is None else tuple(split_batch(p, size) for p in parts)), (0, 0)


class _WeightEager(_Weight):
    @staticmethod
    def jvp(ctx: Any, u: Tensor, d_dy: Tensor, *_rest: None) -> Any:
        x, dy = ctx.saved_tensors
        rest = (ctx.stride, ctx.groups)
        d_weight, d_bias = _weight(x, d_dy, *rest)
        return d_weight + _weight(u, dy, *rest)[0], d_bias


def _group(parameter: Tensor, in_dim: int | None, size: int, dims: int) -> Tensor:
    """Parameters of a batch of `size`, which may have groups already, as groups."""
    groups = batch_first(parameter, in_dim, size)
    return groups.flatten(0, 1) if groups.dim() > dims + 1 else groups


@torch.library.register_fake("fastmeta::conv_forward")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    h, w = (-(-size // stride) for size in x.shape[2:])
    return _images(x, x.shape[0], weight.shape[-4], h, w)


@torch.library.register_fake("fastmeta::conv_input")
def _(dy: Tensor, weight: Tensor, h: int, w: int, stride: int) -> Tensor:
    return _images(dy, dy.shape[0], weight.shape[-3], h, w)


@torch.library.register_fake("fastmeta::conv_weight")
def _(x: Tensor, dy: Tensor, stride: int, groups: int | None) -> list[Tensor]:
    lead = () if groups is None else (groups,)
    channels = (*lead, dy.shape[1])
    return [x.new_empty(*channels, x.shape[1], 3, 3), x.new_empty(channels)]


def _images(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
