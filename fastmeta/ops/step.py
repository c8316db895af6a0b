"""The inner SGD step over all tensors of all tasks at once; also a step of the HVP recursion."""

from __future__ import annotations

from collections.abc import Sequence
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
)
from fastmeta.reference import accumulation_dtype


def inner_step(
    theta: Sequence[Tensor],
    grad: Sequence[Tensor | None],
    alpha: float | Tensor | Sequence[Tensor],
    frozen: Sequence[bool] | None = None,
) -> tuple[Tensor, ...]:
    """`theta - alpha * grad` for a list of parameters in one launch.

    Differentiable in `theta`, `grad` and `alpha`. With `theta = v` and `grad = H v` it is
    the recursion step `v - alpha H v` of the exact meta-gradient.

    Args:
        theta: `L` tensors of one dtype (float64, float32, float16, bfloat16) and one device, with
            or without a leading task dimension.
        grad: `L` tensors of the same shapes; `None` leaves the parameter unchanged.
        alpha: the inner learning rate: a number, a tensor with one element, a tensor `(L,)` of
            per-layer rates, or `L` tensors, each with one element or of its parameter's shape.
        frozen: one flag per parameter: whether to return an unchanged copy.

    Returns:
        `L` contiguous tensors, new except for parameters without a gradient.

    Raises:
        RuntimeError: if lengths, shapes, dtypes or devices do not match.
        ValueError: if `alpha` has neither one value nor one per tensor.
    """
    theta, grads, rates, flags = _arguments(theta, grad, alpha, frozen)
    with_grad = [i for i, g in enumerate(grad) if g is not None]
    if len(with_grad) < len(theta):
        new = {i: t.contiguous() for i, t in enumerate(theta)}
        if with_grad:
            t, g, r = ([part[i] for i in with_grad] for part in (theta, grads, rates))
            updated = inner_step(t, g, r, [bool(flags[i]) for i in with_grad])
            new.update(zip(with_grad, updated, strict=True))
        return tuple(new.values())
    if needs_autograd(*theta, *grads, *rates):
        return tuple(apply(_InnerStep, _InnerStepEager, flags, *theta, *grads, *rates))
    return tuple(kernels.inner_step.default(theta, grads, rates, flags))


def inner_step_(
    theta: Sequence[Tensor],
    grad: Sequence[Tensor | None],
    alpha: float | Tensor | Sequence[Tensor],
    frozen: Sequence[bool] | None = None,
) -> None:
    """[`inner_step`][fastmeta.ops.inner_step] in place on contiguous tensors; not differentiable.

    Raises:
        RuntimeError: if lengths, shapes, dtypes or devices do not match, a tensor is not contiguous
            or shares memory with another one, or with the gradients or rates of other elements.
    """
    theta, grads, rates, flags = _arguments(theta, grad, alpha, frozen)
    with torch.no_grad():
        kernels.inner_step_.default(theta, grads, rates, flags)
    bump_versions(theta)


def _arguments(
    theta: Sequence[Tensor],
    grad: Sequence[Tensor | None],
    alpha: float | Tensor | Sequence[Tensor],
    frozen: Sequence[bool] | None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[int]]:
    tensors, count = list(theta), len(theta)
    for name, given in (("gradients", grad), ("frozen flags", frozen)):
        if not count or (given is not None and len(given) != count):
            raise RuntimeError(
                f"fastmeta: inner_step: expected at least one parameter and as many {name}, got "
                f"{count} parameters and {0 if given is None else len(given)} {name}."
            )
    if any(t.dtype != tensors[0].dtype for t in tensors):
        dtypes = ", ".join(str(t.dtype) for t in tensors)
        raise RuntimeError(
            f"fastmeta: inner_step: expected parameters of one dtype, got {dtypes:.80}. Call it "
            "once per dtype."
        )
    acc = accumulation_dtype(tensors[0].dtype)
    if isinstance(alpha, Tensor):
        if alpha.numel() == 1:
            rates = [alpha.reshape(())] * count
        elif alpha.shape == (count,):
            rates = list(alpha.unbind())
        else:
            raise ValueError(
                f"alpha must have one value or one for each of the {count} tensors, got shape "
                f"{tuple(alpha.shape)}. Pass a list of tensors for per-parameter rates."
            )
    elif isinstance(alpha, (int, float)):
        rates = [torch.full((), float(alpha), dtype=acc, device=tensors[0].device)] * count
    else:
        if len(alpha) != count or not all(isinstance(rate, Tensor) for rate in alpha):
            raise ValueError(
                f"alpha must be a number, a tensor, or one tensor for each of the {count} "
                f"parameters; got {alpha!r:.80}."
            )
        rates = [rate.reshape(()) if rate.numel() == 1 else rate for rate in alpha]
    flags = [int(bool(f)) for f in frozen] if frozen is not None else [0] * count
    flags = [int(s or g is None) for s, g in zip(flags, grad, strict=True)]
    grads = [t if g is None else g for t, g in zip(tensors, grad, strict=True)]
    return tensors, grads, [r.to(acc) for r in rates], flags


def _split(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Parameters, gradients and rates from their concatenation."""
    count = len(tensors) // 3
    theta, grad, alpha = (list(tensors[k * count : (k + 1) * count]) for k in range(3))
    return theta, grad, alpha


class _InnerStep(torch.autograd.Function):
    @staticmethod
    def reference_impl(flags: list[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        return reference.inner_step(*_split(tensors), flags)

    @staticmethod
    def forward(flags: list[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(kernels.inner_step.default(*_split(tensors), flags))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.flags = inputs[0]
        count = len(ctx.flags)
        ctx.save_for_backward(*inputs[1 + count :])
        ctx.save_for_forward(*inputs[1 + count :])

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> Any:
        count = len(ctx.flags)
        grads, alphas = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        d_grad: list[Tensor | None] = []
        d_alpha: list[Tensor | None] = []
        for k, (out, grad, alpha) in enumerate(zip(outs, grads, alphas, strict=True)):
            if ctx.flags[k]:
                d_grad.append(None)
                d_alpha.append(None)
                continue
            wide = out.to(alpha.dtype)
            d_grad.append((-alpha * wide).to(grad.dtype))
            product = -wide * grad.to(alpha.dtype)
            d_alpha.append(product.sum().view_as(alpha) if alpha.numel() == 1 else product)
        return None, *outs, *d_grad, *d_alpha

    @staticmethod
    def vmap(info: Any, in_dims: Any, flags: list[int], *tensors: Tensor) -> Any:
        count, dims = len(flags), in_dims[1:]
        alphas = tensors[2 * count :]
        if any(d is not None for d in dims[2 * count :]) or any(a.numel() != 1 for a in alphas):
            return loop_vmap(_inner_step_flat, info, in_dims, (flags, *tensors))
        # One shared rate: the batch is just another dimension of an elementwise step.
        batched = [
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip(tensors[: 2 * count], dims[: 2 * count], strict=True)
        ]
        return _inner_step_flat(flags, *batched, *alphas), (0,) * count


class _InnerStepEager(_InnerStep):
    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor) -> tuple[Tensor, ...]:
        count = len(ctx.flags)
        grads, alphas = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        results = []
        for k in range(count):
            d_theta, d_grad, d_alpha = (tangents[m * count + k] for m in range(3))
            if ctx.flags[k]:
                results.append(d_theta.clone())
                continue
            acc = alphas[k].dtype
            d_step = d_alpha * grads[k].to(acc) + alphas[k] * d_grad.to(acc)
            results.append((d_theta.to(acc) - d_step).to(d_theta.dtype))
        return tuple(results)


def _inner_step_flat(flags: list[int], *tensors: Tensor) -> tuple[Tensor, ...]:
    theta, grad, alpha = _split(tensors)
    return inner_step(theta, grad, alpha, [bool(s) for s in flags])


@torch.library.register_fake("fastmeta::inner_step")
def _(
    theta: Sequence[Tensor], grad: Sequence[Tensor], alpha: Sequence[Tensor], frozen: Sequence[int]
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in theta]


@torch.library.register_fake("fastmeta::inner_step_")
def _(
    theta: Sequence[Tensor], grad: Sequence[Tensor], alpha: Sequence[Tensor], frozen: Sequence[int]
) -> None:
    check_same_device("inner_step_", *theta, *grad, *alpha)
