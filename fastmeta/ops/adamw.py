"""AdamW's update of all tensors at once, and its vector-Jacobian product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.backend import kernels
from fastmeta.ops._function import apply, batch_first, needs_autograd
from fastmeta.ops._torch_derivatives import tangent, with_torch_derivatives


def adamw_step(
    theta: Sequence[Tensor],
    grad: Sequence[Tensor],
    mean: Sequence[Tensor],
    square: Sequence[Tensor],
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """A step of AdamW for a list of parameters in one launch.

    Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2, as
    `torch.optim.AdamW`. Differentiable twice and more, also where `square` stays zero: there the
    derivative of the root counts as zero. Element-wise: tensors may have a leading task dimension.

    Args:
        theta: `L` parameters of one dtype (float64, float32, float16, bfloat16) and one device.
        grad: `L` gradients of the same shapes and dtype, like all others.
        mean: `L` first moments.
        square: `L` second moments.
        lr: learning rate.
        betas: decay rates of the moments.
        eps: added to the square root of the second moment.
        weight_decay: coefficient of the decoupled decay; 0 is Adam.
        step: number of steps before this one.

    Returns:
        The new parameters, first and second moments.

    Raises:
        RuntimeError: if lengths, shapes, dtypes or devices do not match.
    """
    _check("adamw_step", theta, grad, mean, square)
    settings = (lr, *betas, eps, weight_decay, step)
    tensors = [*theta, *grad, *mean, *square]
    if needs_autograd(*tensors):
        found = apply(_Step, _StepEager, settings, *tensors)
    else:
        found = kernels.adamw_step.default(theta, grad, mean, square, *settings)
    updated, means, squares = _split(found, 3)
    return updated, means, squares


def adamw_adjoint(
    grad: Sequence[Tensor],
    mean: Sequence[Tensor],
    square: Sequence[Tensor],
    d_theta: Sequence[Tensor],
    d_mean: Sequence[Tensor],
    d_square: Sequence[Tensor],
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """The vector-Jacobian product of [`adamw_step`][fastmeta.ops.adamw_step], in one launch.

    Differentiable.

    Args:
        grad: as given to `adamw_step`, like `mean` and `square`: the moments before the step.
        mean: see `grad`.
        square: see `grad`.
        d_theta: derivatives of a scalar with respect to the new parameters.
        d_mean: with respect to the new first moments.
        d_square: with respect to the new second moments.
        lr: as given to `adamw_step`, like all further arguments.
        betas: see `lr`.
        eps: see `lr`.
        weight_decay: see `lr`.
        step: see `lr`.

    Returns:
        The derivatives with respect to the parameters, the gradients, and the first and second
        moments before the step.

    Raises:
        RuntimeError: if lengths, shapes, dtypes or devices do not match.
    """
    lists = (grad, mean, square, d_theta, d_mean, d_square)
    _check("adamw_adjoint", *lists)
    flat = [t for tensors in lists for t in tensors]
    found = _adjoint(*flat, lr, *betas, eps, weight_decay, step)
    before, d_grads, means, squares = _split(found, 4)
    return before, d_grads, means, squares


def _check(op: str, *lists: Sequence[Tensor]) -> None:
    lengths = [len(tensors) for tensors in lists]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise RuntimeError(
            f"fastmeta: {op}: expected lists of one length, at least one tensor; got {lengths}."
        )


def _split(tensors: Sequence[Any], parts: int) -> Any:  # lists of tensors, for any argument
    count = len(tensors) // parts
    return [list(tensors[k * count : (k + 1) * count]) for k in range(parts)]


def _batched(tensors: Sequence[Tensor], in_dims: Sequence[Any], size: int) -> list[Tensor]:
    """The batch as just another dimension of an element-wise op."""
    return [batch_first(t, d, size) for t, d in zip(tensors, in_dims, strict=True)]


# The adjoint as a function of six lists in one and the settings.
_SETTINGS = 6


def _adjoint_kernel(*args: Any) -> Any:
    lists = _split(args[:-_SETTINGS], 6)
    return kernels.adamw_adjoint.default(*lists, *args[-_SETTINGS:])


def _adjoint_reference(*args: Any) -> Any:
    lists = _split(args[:-_SETTINGS], 6)
    return tuple(reference.adamw_adjoint(*lists, *args[-_SETTINGS:]))


def _adjoint_vmap(op: Any, info: Any, in_dims: Any, args: Any) -> Any:
    batched = _batched(args[:-_SETTINGS], in_dims[:-_SETTINGS], info.batch_size)
    return op(*batched, *args[-_SETTINGS:]), (0,) * (len(batched) // 6 * 4)


_adjoint = with_torch_derivatives(_adjoint_kernel, _adjoint_reference, -_SETTINGS, _adjoint_vmap)


class _Step(torch.autograd.Function):
    @staticmethod
    def reference_impl(settings: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(reference.adamw_step(*_split(tensors, 4), *settings))

    @staticmethod
    def forward(settings: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(kernels.adamw_step.default(*_split(tensors, 4), *settings))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.settings, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> Any:
        saved = ctx.saved_tensors[len(outs) // 3 :]  # the adjoint does not depend on the parameters
        return None, *_adjoint(*saved, *outs, *ctx.settings)

    @staticmethod
    def vmap(info: Any, in_dims: Any, settings: Any, *tensors: Tensor) -> Any:
        lists = _split(_batched(tensors, in_dims[1:], info.batch_size), 4)
        lr, *betas, eps, decay, step = settings
        found = adamw_step(*lists, lr=lr, betas=betas, eps=eps, weight_decay=decay, step=step)
        results = [t for kind in found for t in kind]
        return tuple(results), (0,) * len(results)


class _StepEager(_Step):
    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor) -> tuple[Tensor, ...]:
        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(reference.adamw_step(*_split(tensors, 4), *ctx.settings))

        found: tuple[Tensor, ...] = tangent(
            function, [t.contiguous() for t in ctx.saved_tensors], tangents
        )
        return found


@torch.library.register_fake("fastmeta::adamw_step")
def _(theta: Sequence[Tensor], *_others: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for _ in range(3) for t in theta]


@torch.library.register_fake("fastmeta::adamw_adjoint")
def _(grad: Sequence[Tensor], *_others: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for _ in range(4) for t in grad]
