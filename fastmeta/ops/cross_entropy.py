"""Softmax cross entropy with fused first and second derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta._checks import check_choice, check_in_range, check_integer
from fastmeta.backend import kernels
from fastmeta.ops._function import apply, merged_vmap, needs_autograd
from fastmeta.ops._torch_derivatives import with_torch_derivatives

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    z: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of the softmax of logits with class indices.

    Arguments are those of `torch.nn.functional.cross_entropy`, without class weights and class
    probabilities. Forward, backward, double backward and forward mode (of forward and of backward)
    are kernels that hold no probabilities; third derivatives are PyTorch's. `vmap` makes one call.
    Half precision is computed in float32. Results do not depend on the number of threads.

    Args:
        z: `(classes,)`, `(n, classes)` or `(n, classes, ...)`; float64, float32, float16 or
            bfloat16.
        target: shape of `z` without the classes, int64. An index that is neither a class nor
            `ignore_index` is an error on the CPU and yields NaN on a GPU.
        ignore_index: the target of elements that do not count.
        label_smoothing: weight of the uniform distribution in the target distribution.
        reduction: `"mean"` over the elements that count, `"sum"` or `"none"`.

    Returns:
        The loss; with `reduction="none"` in the shape of `target`. Dtype of `z`.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match, or a target is invalid.
        ValueError: if `reduction` is none of these, `label_smoothing` not in `[0, 1]` or
            `ignore_index` no integer.
        NotImplementedError: if the tensors are on a GPU, and the build has no CUDA kernels.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_in_range("label_smoothing", label_smoothing, 0, 1, closed=True)
    check_integer("ignore_index", ignore_index, -(2**63))
    logits = z.movedim(1, -1) if z.dim() > 1 else z
    if not z.dim() or logits.shape[:-1] != target.shape:
        raise RuntimeError(
            "fastmeta: cross_entropy: expected logits (n, classes, ...) and targets (n, ...), got "
            f"{tuple(z.shape)} and {tuple(target.shape)}."
        )
    rows = logits.reshape(-1, logits.shape[-1]), target.reshape(-1)
    losses, _ = _forward(*rows, ignore_index, float(label_smoothing))
    if reduction == "none":
        return losses.view(target.shape).to(z.dtype)
    total = losses.sum()
    if reduction == "mean":
        total = total / (target != ignore_index).sum()
    return total.to(z.dtype)


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    """Losses and logsumexp of rows, from `z, target, ignored, smoothing`."""
    if needs_autograd(args[0]):
        losses, logsumexp = apply(_CrossEntropy, _CrossEntropyEager, *args)
    else:
        losses, logsumexp = kernels.cross_entropy_forward.default(*args)
    return losses, logsumexp


def _backward(*args: Any) -> Tensor:
    """Gradient of `z`, from `dloss, z, target, logsumexp, ignored, smoothing`."""
    if needs_autograd(*args[:2]):
        dz: Tensor = apply(_Backward, _BackwardEager, *args)
    else:
        dz = kernels.cross_entropy_backward.default(*args)
    return dz


# The JVP of the losses, from `tz, z, target, logsumexp, ignored, smoothing`.
_tangent = with_torch_derivatives(
    lambda *args: kernels.cross_entropy_tangent.default(*args),
    lambda *args: reference.cross_entropy_tangent(*args[:3], *args[4:]),
    2,
    merged_vmap,
)

# The JVPs of the losses and of the gradient of `z`, from `dloss, tdloss, tz, z, target, logsumexp,
# ignored, smoothing`; `tdloss` may be `None`.
_second = with_torch_derivatives(
    lambda *args: kernels.cross_entropy_second.default(*args),
    lambda *args: reference.cross_entropy_second(*args[:5], *args[6:]),
    4,
    merged_vmap,
)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def reference_impl(*args: Any) -> Any:
        return reference.row_losses(*args), args[0].new_empty(0)

    @staticmethod
    def forward(*args: Any) -> Any:
        return tuple(kernels.cross_entropy_forward.default(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, target, ctx.ignored, ctx.smoothing = inputs
        logsumexp = output[1]
        ctx.mark_non_differentiable(logsumexp)
        ctx.save_for_backward(z, target, logsumexp)
        ctx.save_for_forward(z, target, logsumexp)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, _logsumexp: Any) -> Any:
        dz = _backward(dloss, *ctx.saved_tensors, ctx.ignored, ctx.smoothing)
        return dz, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return merged_vmap(_forward, info, in_dims, args)


class _CrossEntropyEager(_CrossEntropy):
    @staticmethod
    def jvp(ctx: Any, tz: Tensor, *_rest: Any) -> Any:
        return _tangent(tz, *ctx.saved_tensors, ctx.ignored, ctx.smoothing), None


class _Backward(torch.autograd.Function):
    @staticmethod
    def reference_impl(*args: Any) -> Any:
        return reference.cross_entropy_backward(*args[:3], *args[4:])

    @staticmethod
    def forward(*args: Any) -> Any:
        return kernels.cross_entropy_backward.default(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.ignored, ctx.smoothing = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, tz: Tensor) -> Any:
        dloss, *others = ctx.saved_tensors
        # logsumexp is a function of z, whose gradient includes its.
        second = _second(dloss, None, tz, *others, ctx.ignored, ctx.smoothing)
        return *second, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return merged_vmap(_backward, info, in_dims, args)


class _BackwardEager(_Backward):
    @staticmethod
    def jvp(ctx: Any, tdloss: Tensor, tz: Tensor, *_rest: Any) -> Any:
        dloss, *others = ctx.saved_tensors
        return _second(dloss, tdloss, tz, *others, ctx.ignored, ctx.smoothing)[1]


def _per_row(z: Tensor) -> Tensor:
    return z.new_empty(z.shape[0], dtype=reference.accumulation_dtype(z.dtype))


@torch.library.register_fake("fastmeta::cross_entropy_forward")
def _(z: Tensor, *_: Any) -> list[Tensor]:
    return [_per_row(z), _per_row(z)]


@torch.library.register_fake("fastmeta::cross_entropy_backward")
def _(dloss: Tensor, z: Tensor, *_: Any) -> Tensor:
    return z.new_empty(z.shape)


@torch.library.register_fake("fastmeta::cross_entropy_tangent")
def _(tz: Tensor, *_: Any) -> Tensor:
    return _per_row(tz)


@torch.library.register_fake("fastmeta::cross_entropy_second")
def _(dloss: Tensor, tdloss: Any, tz: Tensor, *_: Any) -> list[Tensor]:
    return [_per_row(tz), tz.new_empty(tz.shape)]
