"""A linear layer and softmax cross entropy that never hold the logits of all rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta._checks import check_choice, check_in_range, check_integer
from fastmeta.ops._function import apply, loop_vmap, needs_autograd
from fastmeta.ops._linear_loss import hessian_product, loss_and_grads
from fastmeta.ops._torch_derivatives import with_torch_derivatives


def linear_cross_entropy(
    x: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """`cross_entropy(linear(x, linear_weight, linear_bias), target)`, by chunks of rows.

    In place of the logits, `(n, classes)`, it keeps the gradients of the loss, in the shapes of its
    arguments: a forward pass with gradients costs the three products of a training step, its
    backward and the tangent of the loss cost none, and a Hessian-vector product costs seven (double
    backward, forward mode of backward). Third derivatives are PyTorch's, and do hold the logits.
    Arguments are those of `torch.nn.functional.linear_cross_entropy` (2.13), whose chunked variant
    has no second derivatives.

    Args:
        x: `(..., width)`; float64, float32, float16 or bfloat16.
        linear_weight: `(classes, width)`, dtype of `x`.
        target: `(...)`, int64; see [`cross_entropy`][fastmeta.ops.cross_entropy].
        linear_bias: `(classes,)`, dtype of `x`; `None` for none.
        ignore_index: the target of rows that do not count.
        label_smoothing: weight of the uniform distribution in the target distribution.
        reduction: `"mean"` over the rows that count, or `"sum"`.

    Returns:
        The loss, a scalar of the dtype of `x`.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match, or a target is invalid.
        ValueError: if `reduction` is neither, `label_smoothing` not in `[0, 1]` or `ignore_index`
            no integer.
        NotImplementedError: if the tensors are on a GPU, and the build has no CUDA kernels.
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    check_in_range("label_smoothing", label_smoothing, 0, 1, closed=True)
    check_integer("ignore_index", ignore_index, -(2**63))
    tensors = [x, linear_weight] if linear_bias is None else [x, linear_weight, linear_bias]
    bias_shape = linear_weight.shape[:1] if linear_bias is None else linear_bias.shape
    if (
        linear_weight.dim() != 2
        or not x.dim()
        or x.shape[-1] != linear_weight.shape[1]
        or bias_shape != linear_weight.shape[:1]
        or x.shape[:-1] != target.shape
        or any(t.dtype != x.dtype for t in tensors)
    ):
        shapes = ", ".join(f"{tuple(t.shape)} of {t.dtype}" for t in [*tensors, target])
        raise RuntimeError(
            "fastmeta: linear_cross_entropy: expected an input (..., width), a weight (classes, "
            "width), perhaps a bias (classes,), of one dtype, and a target (...), got "
            f"{shapes}."
        )
    bias = x.new_zeros(linear_weight.shape[0]) if linear_bias is None else linear_bias
    rows, classes = x.reshape(-1, x.shape[-1]), target.reshape(-1)
    args = rows, linear_weight, bias, classes, ignore_index, float(label_smoothing)
    loss, *_ = _forward(*args) if needs_autograd(*args[:3]) else loss_and_grads(*args, grads=False)
    if reduction == "mean":
        loss = loss / (target != ignore_index).sum()
    return loss.to(x.dtype)


# The tangents of the gradients, from `tx, tweight, tbias, x, weight, bias, target, options`.
_second = with_torch_derivatives(hessian_product, reference.linear_loss_second, 6, loop_vmap)


def _forward(*args: Any) -> tuple[Tensor, ...]:
    """The sum of the losses and its gradients, from `x, weight, bias, target, options`.

    The gradients are constants to autograd.
    """
    results: tuple[Tensor, ...] = (
        apply(_Loss, _LossEager, *args) if needs_autograd(*args[:3]) else loss_and_grads(*args)
    )
    return results


def _scale(*args: Any) -> tuple[Tensor, ...]:
    """The gradients times `g`, from `g, dx, dweight, dbias, x, weight, bias, target, options`."""
    wanted = needs_autograd(args[0], *args[4:7])
    results: tuple[Tensor, ...]
    results = apply(_Scale, _ScaleEager, *args) if wanted else _Scale.forward(*args)
    return results


def _inner(*args: Any) -> Tensor:
    """`<t, d>`, from three `t`, three gradients `d`, `x, weight, bias, target, options`."""
    wanted = needs_autograd(*args[:3], *args[6:9])
    tangent: Tensor
    tangent = apply(_Inner, _InnerEager, *args) if wanted else _Inner.forward(*args)
    return tangent


class _Loss(torch.autograd.Function):
    @staticmethod
    def reference_impl(*args: Any) -> Any:
        return reference.linear_loss(*args), *(t.new_empty(0) for t in args[:3])

    @staticmethod
    def forward(*args: Any) -> Any:
        return loss_and_grads(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.ignored, ctx.smoothing = inputs
        grads = output[1:]
        ctx.mark_non_differentiable(*grads)
        ctx.save_for_backward(*grads, *tensors)
        ctx.save_for_forward(*grads, *tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_grads: Any) -> Any:
        scaled = _scale(g, *ctx.saved_tensors, ctx.ignored, ctx.smoothing)
        return *scaled, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return loop_vmap(_forward, info, in_dims, args)


class _LossEager(_Loss):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        options = ctx.ignored, ctx.smoothing
        return _inner(*tangents[:3], *ctx.saved_tensors, *options), None, None, None


class _Inner(torch.autograd.Function):
    """The tangent of the loss along directions; `dx`, `dweight` and `dbias` are its gradients."""

    @staticmethod
    def reference_impl(*args: Any) -> Any:
        grads = reference.linear_loss_grads(*args[6:])
        return _Inner.forward(*args[:3], *grads)

    @staticmethod
    def forward(*args: Any) -> Any:
        wide = reference.accumulation_dtype(args[0].dtype)
        products = [(t * d).sum(dtype=wide) for t, d in zip(args[:3], args[3:6], strict=True)]
        return products[0] + products[1] + products[2]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.ignored, ctx.smoothing = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        saved, options = ctx.saved_tensors, (ctx.ignored, ctx.smoothing)
        along = _scale(g, *saved[3:], *options)
        second = _second(*saved[:3], *saved[6:], *options)
        return *along, None, None, None, *_times(g, second), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return loop_vmap(_inner, info, in_dims, args)


class _InnerEager(_Inner):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        saved, options = ctx.saved_tensors, (ctx.ignored, ctx.smoothing)
        second = _second(*tangents[6:9], *saved[6:], *options)
        first = _inner(*tangents[:3], *saved[3:], *options)
        return first + _Inner.forward(*saved[:3], *second)


def _times(g: Tensor, tensors: Any) -> list[Tensor]:
    return [(g * t).to(t.dtype) for t in tensors]


class _Scale(torch.autograd.Function):
    """The gradient of the loss: `dx`, `dweight` and `dbias` are functions of the other tensors."""

    @staticmethod
    def reference_impl(g: Tensor, *args: Any) -> Any:
        return tuple(_times(g, reference.linear_loss_grads(*args[3:])))

    @staticmethod
    def forward(g: Tensor, *args: Any) -> Any:
        return tuple(_times(g, args[:3]))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.ignored, ctx.smoothing = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor) -> Any:
        (g, *saved), options = ctx.saved_tensors, (ctx.ignored, ctx.smoothing)
        scaled = _times(g, _second(*directions, *saved[3:], *options))
        along = _inner(*directions, *saved, *options)
        return along, None, None, None, *scaled, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return loop_vmap(_scale, info, in_dims, args)


class _ScaleEager(_Scale):
    @staticmethod
    def jvp(ctx: Any, tg: Tensor, *tangents: Any) -> Any:
        (g, *saved), options = ctx.saved_tensors, (ctx.ignored, ctx.smoothing)
        second = _times(g, _second(*tangents[3:6], *saved[3:], *options))
        first = _scale(tg, *saved, *options)
        return tuple(f + s for f, s in zip(first, second, strict=True))
