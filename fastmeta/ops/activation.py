"""GELU and SiLU with fused first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta._checks import check_choice
from fastmeta.backend import kernels
from fastmeta.ops._function import apply, batch_first, needs_autograd
from fastmeta.ops._torch_derivatives import with_torch_derivatives

# Numbers of the activations in csrc/include/fastmeta/activation.h.
_KINDS = {3: "silu", 5: "gelu", 6: "gelu_tanh"}


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """The Gaussian error linear unit (Hendrycks & Gimpel 2016), elementwise.

    Arguments are those of `torch.nn.functional.gelu`. Forward, backward, double backward and
    forward mode (of forward and of backward) are kernels of one pass; third derivatives are
    PyTorch's. `vmap` makes one call. Half precision is computed in float32.

    Args:
        x: any shape; float64, float32, float16 or bfloat16.
        approximate: `"none"`, or `"tanh"` for the approximation by a hyperbolic tangent.

    Returns:
        Shape and dtype of `x`.

    Raises:
        ValueError: if `approximate` is neither.
        NotImplementedError: if `x` is on a GPU, and the build has no CUDA kernels.
    """
    check_choice("approximate", approximate, ("none", "tanh"))
    return _forward(x, 6 if approximate == "tanh" else 5)


def silu(x: Tensor) -> Tensor:
    """The sigmoid linear unit `x * sigmoid(x)`, elementwise.

    torch has no forward derivative of its backward, so that a Hessian-vector product by forward
    over reverse (`hvp="forward"`) needs this op. Otherwise as [`gelu`][fastmeta.ops.gelu].

    Args:
        x: any shape; float64, float32, float16 or bfloat16.

    Returns:
        Shape and dtype of `x`.

    Raises:
        NotImplementedError: if `x` is on a GPU, and the build has no CUDA kernels.
    """
    return _forward(x, 3)


def _forward(x: Tensor, kind: int) -> Tensor:
    if needs_autograd(x):
        out: Tensor = apply(_Activation, _ActivationEager, x, kind)
    else:
        out = kernels.activation_forward.default(x, kind)
    return out


def _backward(dout: Tensor, x: Tensor, kind: int) -> Tensor:
    """The gradient of `x`, and the tangent of the output along `dout`."""
    if needs_autograd(dout, x):
        dx: Tensor = apply(_Backward, _BackwardEager, dout, x, kind)
    else:
        dx = kernels.activation_backward.default(dout, x, kind)
    return dx


def _batched(
    function: Callable[..., Any], info: Any, in_dims: Sequence[Any], args: Sequence[Any]
) -> tuple[Any, Any]:
    """A `vmap` rule: one call on all elements."""
    *tensors, kind = args
    size = info.batch_size
    tensors = [batch_first(t, dim, size) for t, dim in zip(tensors, in_dims, strict=False)]
    outputs = function(*tensors, kind)
    return outputs, 0 if isinstance(outputs, Tensor) else (0,) * len(outputs)


def _reference(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: function(*args[:-1], _KINDS[args[-1]])


# The JVPs of the gradient of `x` and of the output, from `dout, tx, x, kind`.
_second = with_torch_derivatives(
    lambda *args: kernels.activation_second.default(*args),
    _reference(reference.activation_second),
    3,
    _batched,
)

# The JVP of the gradient of `x`, from `dout, tdout, tx, x, kind`.
_backward_tangent = with_torch_derivatives(
    lambda *args: kernels.activation_backward_tangent.default(*args),
    _reference(reference.activation_backward_tangent),
    4,
    _batched,
)


class _Activation(torch.autograd.Function):
    reference_impl = staticmethod(_reference(reference.activation))

    @staticmethod
    def forward(x: Tensor, kind: int) -> Any:
        return kernels.activation_forward.default(x, kind)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.kind = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return _backward(dout, x, ctx.kind), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _batched(_forward, info, in_dims, args)


class _ActivationEager(_Activation):
    @staticmethod
    def jvp(ctx: Any, tx: Tensor, _kind: None) -> Any:
        (x,) = ctx.saved_tensors
        return _backward(tx, x, ctx.kind)


class _Backward(torch.autograd.Function):
    reference_impl = staticmethod(_reference(reference.activation_backward))

    @staticmethod
    def forward(dout: Tensor, x: Tensor, kind: int) -> Any:
        return kernels.activation_backward.default(dout, x, kind)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dout, x, ctx.kind = inputs
        ctx.save_for_backward(dout, x)
        ctx.save_for_forward(dout, x)

    @staticmethod
    def backward(ctx: Any, tx: Tensor) -> Any:
        dout, x = ctx.saved_tensors
        dx, tout = _second(dout, tx, x, ctx.kind)
        return tout, dx, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _batched(_backward, info, in_dims, args)


class _BackwardEager(_Backward):
    @staticmethod
    def jvp(ctx: Any, tdout: Tensor, tx: Tensor, _kind: None) -> Any:
        dout, x = ctx.saved_tensors
        return _backward_tangent(dout, tdout, tx, x, ctx.kind)


@torch.library.register_fake("fastmeta::activation_forward")
def _(x: Tensor, kind: int) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("fastmeta::activation_backward")
def _(dout: Tensor, x: Tensor, kind: int) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("fastmeta::activation_second")
def _(dout: Tensor, tx: Tensor, x: Tensor, kind: int) -> list[Tensor]:
    return [x.new_empty(x.shape), x.new_empty(x.shape)]


@torch.library.register_fake("fastmeta::activation_backward_tangent")
def _(dout: Tensor, tdout: Tensor, tx: Tensor, x: Tensor, kind: int) -> Tensor:
    return x.new_empty(x.shape)
