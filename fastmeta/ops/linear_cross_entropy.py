"""A linear layer and softmax cross entropy that never hold the logits of all rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta._checks import check_choice, check_in_range
from fastmeta.backend import kernels
from fastmeta.ops._function import apply, loop_vmap, needs_autograd
from fastmeta.ops._torch_derivatives import with_torch_derivatives

_CHUNK = 1 << 21  # logits held at a time
_MIN_ROWS = 16  # fewer would make the products slow


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
        ValueError: if `reduction` is neither or `label_smoothing` not in `[0, 1]`.
        NotImplementedError: if the tensors are on a GPU, and the build has no CUDA kernels.
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    check_in_range("label_smoothing", label_smoothing, 0, 1, closed=True)
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
    loss, *_ = _forward(*args) if needs_autograd(*args[:3]) else _loss(*args, grads=False)
    if reduction == "mean":
        loss = loss / (target != ignore_index).sum()
    return loss.to(x.dtype)


def _chunks(rows: int, classes: int) -> Iterator[slice]:
    size = max(_MIN_ROWS, _CHUNK // max(classes, 1))
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))


class _Sums:
    """Gradients of the input, filled by chunks, and of weight and bias, summed over them."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        wide = reference.accumulation_dtype(x.dtype)
        self.dx = torch.empty_like(x)
        self.dweight = torch.zeros_like(weight, dtype=wide)
        self.dbias = torch.zeros_like(bias, dtype=wide)

    def add(self, dz: Tensor, x: Tensor, bias: bool = True) -> None:
        if self.dweight.dtype == dz.dtype:
            self.dweight.addmm_(dz.mT, x)
        else:
            self.dweight += dz.mT @ x
        if bias:
            self.dbias += dz.sum(0, dtype=self.dbias.dtype)

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        dtype = self.dx.dtype
        return self.dx, self.dweight.to(dtype), self.dbias.to(dtype)


@torch.no_grad()
def _loss(
    x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, *options: Any, grads: bool = True
) -> tuple[Tensor, ...]:
    """The sum of the losses, and its gradients with respect to `x`, `weight` and `bias`."""
    sums = _Sums(x, weight, bias) if grads else None
    loss = x.new_zeros((), dtype=reference.accumulation_dtype(x.dtype))
    for rows in _chunks(len(x), len(bias)):
        z = torch.addmm(bias, x[rows], weight.mT)
        losses, logsumexp = kernels.cross_entropy_forward.default(z, target[rows], *options)
        loss += losses.sum()
        if sums is not None:
            one = torch.ones_like(losses)
            dz = kernels.cross_entropy_backward.default(one, z, target[rows], logsumexp, *options)
            torch.mm(dz, weight, out=sums.dx[rows])
            sums.add(dz, x[rows])
    return loss, *(() if sums is None else sums.results())


@torch.no_grad()
def _hessian_product(
    tx: Tensor,
    tweight: Tensor,
    tbias: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    """The tangents of the gradients of `x`, `weight` and `bias`."""
    sums = _Sums(x, weight, bias)
    for rows in _chunks(len(x), len(bias)):
        z = torch.addmm(bias, x[rows], weight.mT)
        tz = torch.addmm(tbias, tx[rows], weight.mT).addmm_(x[rows], tweight.mT)
        losses, logsumexp = kernels.cross_entropy_forward.default(z, target[rows], *options)
        given = z, target[rows], logsumexp, *options
        one = torch.ones_like(losses)
        _, tdz = kernels.cross_entropy_second.default(one, None, tz, *given)
        del tz
        dz = kernels.cross_entropy_backward.default(one, *given)
        torch.mm(tdz, weight, out=sums.dx[rows])
        sums.dx[rows].addmm_(dz, tweight)
        sums.add(tdz, x[rows])
        sums.add(dz, tx[rows], bias=False)
    return sums.results()


# Of the gradients, from `tx, tweight, tbias, x, weight, bias, target, ignored, smoothing`.
_second = with_torch_derivatives(_hessian_product, reference.linear_loss_second, 6, loop_vmap)


def _forward(*args: Any) -> tuple[Tensor, ...]:
    """The sum of the losses and its gradients, from `x, weight, bias, target, options`.

    The gradients are constants to autograd.
    """
    results: tuple[Tensor, ...] = (
        apply(_Loss, _LossEager, *args) if needs_autograd(*args[:3]) else _loss(*args)
    )
    return results


def _scale(*args: Any) -> tuple[Tensor, ...]:
    """The gradients times `g`, from `g, dx, dweight, dbias, x, weight, bias, target, options`."""
    if needs_autograd(args[0], *args[4:7]):
        results: tuple[Tensor, ...] = apply(_Scale, _ScaleEager, *args)
        return results
    return _Scale.forward(*args)


class _Loss(torch.autograd.Function):
    @staticmethod
    def reference_impl(*args: Any) -> Any:
        return reference.linear_loss(*args), *(t.new_empty(0) for t in args[:3])

    @staticmethod
    def forward(*args: Any) -> Any:
        return _loss(*args)

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
        return _inner(ctx.saved_tensors[:3], tangents[:3]), None, None, None


def _inner(grads: Any, directions: Any) -> Tensor:
    """The tangent of the loss, `<grads, directions>` in the accumulation dtype."""
    wide = reference.accumulation_dtype(grads[0].dtype)
    products = [(g * d).sum(dtype=wide) for g, d in zip(grads, directions, strict=True)]
    return products[0] + products[1] + products[2]


class _Scale(torch.autograd.Function):
    """The gradient of the loss: `dx`, `dweight` and `dbias` are functions of the other tensors."""

    @staticmethod
    def reference_impl(g: Tensor, *args: Any) -> Any:
        return tuple((g * t).to(t.dtype) for t in reference.linear_loss_grads(*args[3:]))

    @staticmethod
    def forward(g: Tensor, *args: Any) -> Any:
        return tuple((g * t).to(t.dtype) for t in args[:3])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.ignored, ctx.smoothing = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor) -> Any:
        g, dx, dweight, dbias, *others = ctx.saved_tensors
        second = _second(*directions, *others, ctx.ignored, ctx.smoothing)
        scaled = [(g * t).to(t.dtype) for t in second]
        grads = _inner((dx, dweight, dbias), directions)
        return grads, None, None, None, *scaled, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return loop_vmap(_scale, info, in_dims, args)


class _ScaleEager(_Scale):
    @staticmethod
    def jvp(ctx: Any, tg: Tensor, *tangents: Any) -> Any:
        g, dx, dweight, dbias, *others = ctx.saved_tensors
        second = _second(*tangents[3:6], *others, ctx.ignored, ctx.smoothing)
        first = dx, dweight, dbias
        return tuple((tg * d + g * s).to(d.dtype) for d, s in zip(first, second, strict=True))
