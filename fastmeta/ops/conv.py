"""3x3 convolution, closed under differentiation: its gradients are these ops again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.backend import kernels
from fastmeta.ops._function import apply, fold, needs_autograd, stacked, unfold


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """``conv2d(x, weight, bias, stride, padding=1)`` for 3x3 kernels, of one task or of several.

    Stride 1 is done with Winograd's F(2x2, 3x3) (Lavin & Gray 2016) where that takes fewer
    products: as exact as the sum itself, but NaN where that is infinite. Sums are in the dtype of
    ``x``, over pixels in blocks: in float32 within 2e-6 of what absolute values would sum to. The
    result is in channels-last order, in which the kernels work (an input in another is copied), and
    the same for any number of threads; runs on CPU.

    Args:
        x: ``(N, C, H, W)``, not empty; float32 or float64. With weights in ``G`` groups
            ``(G * N, C, H, W)``: ``N`` images for each.
        weight: ``(O, C, 3, 3)``, dtype of ``x``; or ``(G, O, C, 3, 3)``.
        bias: ``(O,)`` or ``(G, O)``, dtype of ``x``.
        stride: 1 or 2.

    Returns:
        ``(N, O, ceil(H / stride), ceil(W / stride))``, or ``G * N`` of them.

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
    """The gradient in the input of ``h`` x ``w`` pixels."""
    dx: Tensor
    if needs_autograd(dy, weight):
        dx = apply(_Input, _InputEager, dy, weight, h, w, stride)
    else:
        dx = kernels.conv_input.default(dy, weight, h, w, stride)
    return dx


def _weight(x: Tensor, dy: Tensor, stride: int, groups: int | None) -> tuple[Tensor, Tensor]:
    """The gradients in weight and bias."""
    if needs_autograd(x, dy):
        d_weight, d_bias = apply(_Weight, _WeightEager, x, dy, stride, groups)
    else:
        d_weight, d_bias = kernels.conv_weight.default(x, dy, stride, groups)
    return d_weight, d_bias


def _groups(weight: Tensor) -> int | None:
    return weight.shape[0] if weight.dim() == 5 else None


class _Forward(torch.autograd.Function):
    twin = staticmethod(reference.conv3x3)

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
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        dx = _input(dy, weight, x.shape[2], x.shape[3], ctx.stride) if of_x else None
        if not of_weight and not of_bias:
            return dx, None, None, None
        d_weight, d_bias = _weight(x, dy, ctx.stride, _groups(weight))
        return dx, d_weight, d_bias if of_bias else None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, weight: Tensor, bias: Any, stride: int) -> Any:
        size, (of_x, of_weight, of_bias, _) = info.batch_size, in_dims
        if weight.dim() == 4 and of_weight is None and of_bias is None:
            return unfold(_forward(fold(x, of_x, size), weight, bias, stride), size), 0
        grouped = _group(weight, of_weight, size, 4)
        biases = None if bias is None else _group(bias, of_bias, size, 1)
        return unfold(_forward(fold(x, of_x, size), grouped, biases, stride), size), 0


class _ForwardEager(_Forward):
    @staticmethod
    def jvp(ctx: Any, u: Tensor, p: Tensor, q: Tensor | None, _stride: None) -> Tensor:
        x, weight = ctx.saved_tensors
        return _forward(u, weight, q, ctx.stride) + _forward(x, p, None, ctx.stride)


class _Input(torch.autograd.Function):
    twin = staticmethod(reference.conv_input)

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
        of_dy, of_weight, *_ = ctx.needs_input_grad
        d_dy = _forward(u, weight, None, ctx.stride) if of_dy else None
        d_weight = _weight(u, dy, ctx.stride, _groups(weight))[0] if of_weight else None
        return d_dy, d_weight, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, dy: Tensor, weight: Tensor, *sizes: int) -> Any:
        size, (of_dy, of_weight, *_) = info.batch_size, in_dims
        if weight.dim() == 5 or of_weight is not None:
            weight = _group(weight, of_weight, size, 4)
        return unfold(_input(fold(dy, of_dy, size), weight, *sizes), size), 0


class _InputEager(_Input):
    @staticmethod
    def jvp(ctx: Any, d_dy: Tensor, p: Tensor, *_rest: None) -> Tensor:
        dy, weight = ctx.saved_tensors
        rest = (*ctx.sizes, ctx.stride)
        return _input(d_dy, weight, *rest) + _input(dy, p, *rest)


class _Weight(torch.autograd.Function):
    twin = staticmethod(reference.conv_weight)

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
        of_x, of_dy, *_ = ctx.needs_input_grad
        dx = _input(dy, p, x.shape[2], x.shape[3], ctx.stride) if of_x else None
        return dx, _forward(x, p, q, ctx.stride) if of_dy else None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, dy: Tensor, stride: int, groups: Any) -> Any:
        size, (of_x, of_dy, *_) = info.batch_size, in_dims
        parts = _weight(fold(x, of_x, size), fold(dy, of_dy, size), stride, size * (groups or 1))
        return (parts if groups is None else tuple(unfold(p, size) for p in parts)), (0, 0)


class _WeightEager(_Weight):
    @staticmethod
    def jvp(ctx: Any, u: Tensor, d_dy: Tensor, *_rest: None) -> Any:
        x, dy = ctx.saved_tensors
        rest = (ctx.stride, ctx.groups)
        d_weight, d_bias = _weight(x, d_dy, *rest)
        return d_weight + _weight(u, dy, *rest)[0], d_bias


def _group(parameter: Tensor, in_dim: int | None, size: int, dims: int) -> Tensor:
    """Parameters of ``size`` tasks, perhaps each in groups already, as groups."""
    groups = stacked(parameter, in_dim, size)
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
