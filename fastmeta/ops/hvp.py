"""Ops on packed parameters for a central-difference Hessian-vector product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.backend import kernels
from fastmeta.ops._function import apply, loop_vmap, needs_autograd
from fastmeta.reference import accumulation_dtype


def hvp_radius(v: Tensor, radius: float | Tensor = 0.01) -> Tensor:
    """The step size `radius / |v|` per task, computed on the device; 0 where `v` is 0.

    Args:
        v: `(T, P)`.
        radius: L2 distance of the perturbed points from `theta`.

    Returns:
        `(T,)` in the accumulation dtype.
    """
    norms = torch.linalg.vector_norm(v, dim=1, dtype=accumulation_dtype(v.dtype))
    return torch.where(norms > 0, radius / torch.where(norms > 0, norms, 1), 0)


def hvp_perturb(theta: Tensor, v: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """`(theta + eps_t v, theta - eps_t v)`, in one pass.

    Differentiable.

    Args:
        theta: `(T, P)` parameters; float64, float32, float16 or bfloat16.
        v: `(T, P)` directions.
        eps: `(T,)` step sizes in the accumulation dtype, see
            [`hvp_radius`][fastmeta.ops.hvp_radius].

    Returns:
        Two new `(T, P)` tensors.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match.
    """
    if needs_autograd(theta, v, eps):
        plus, minus = apply(_Perturb, _PerturbEager, theta, v, eps)
    else:
        plus, minus = kernels.hvp_perturb.default(theta, v, eps)
    return plus, minus


def hvp_difference(
    v: Tensor, g_plus: Tensor, g_minus: Tensor, eps: Tensor, alpha: Tensor
) -> Tensor:
    """`v - alpha (g_plus - g_minus) / (2 eps_t)`: one HVP recursion step by central differences.

    Fallah et al. 2019 (HF-MAML), with `g_plus` and `g_minus` the gradients at the points of
    [`hvp_perturb`][fastmeta.ops.hvp_perturb]. Differentiable.

    Args:
        v: `(T, P)`; float64, float32, float16 or bfloat16.
        g_plus: `(T, P)`.
        g_minus: `(T, P)`.
        eps: `(T,)` step sizes; where it is 0, `v` is returned unchanged.
        alpha: the inner learning rate, one value or `(P,)`, in the accumulation dtype.

    Returns:
        A new `(T, P)` tensor.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match.
    """
    args = (v, g_plus, g_minus, eps, alpha)
    if needs_autograd(*args):
        result: Tensor = apply(_Difference, _DifferenceEager, *args)
    else:
        result = kernels.hvp_difference.default(*args)
    return result


class _Perturb(torch.autograd.Function):
    reference_impl = staticmethod(reference.hvp_perturb)

    @staticmethod
    def forward(theta: Tensor, v: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        plus, minus = kernels.hvp_perturb.default(theta, v, eps)
        return plus, minus

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, v, eps = inputs
        ctx.save_for_backward(v, eps)
        ctx.save_for_forward(v, eps)

    @staticmethod
    def backward(ctx: Any, plus: Tensor, minus: Tensor) -> Any:
        v, eps = ctx.saved_tensors
        difference = plus.to(eps.dtype) - minus.to(eps.dtype)
        return (
            plus + minus,
            (eps[:, None] * difference).to(v.dtype),
            (v.to(eps.dtype) * difference).sum(1),
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return loop_vmap(hvp_perturb, info, in_dims, args)


class _PerturbEager(_Perturb):
    @staticmethod
    def jvp(ctx: Any, d_theta: Tensor, d_v: Tensor, d_eps: Tensor) -> tuple[Tensor, Tensor]:
        v, eps = ctx.saved_tensors
        shift = d_eps[:, None] * v.to(eps.dtype) + eps[:, None] * d_v.to(eps.dtype)
        return (d_theta + shift).to(v.dtype), (d_theta - shift).to(v.dtype)


def _inverse_width(eps: Tensor) -> Tensor:
    """`1 / (2 eps)` as a column, 0 where `eps` is 0."""
    zero = eps == 0
    return torch.where(zero, 0, 0.5 / torch.where(zero, 1, eps))[:, None]


class _Difference(torch.autograd.Function):
    reference_impl = staticmethod(reference.hvp_difference)

    @staticmethod
    def forward(*args: Tensor) -> Tensor:
        result: Tensor = kernels.hvp_difference.default(*args)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        g_plus, g_minus, eps, alpha = ctx.saved_tensors
        wide, inverse = grad.to(eps.dtype), _inverse_width(eps)
        hvp = (g_plus.to(eps.dtype) - g_minus.to(eps.dtype)) * inverse
        d_plus = -wide * alpha * inverse
        d_eps = (wide * alpha * hvp * 2 * inverse).sum(1)
        d_alpha = -(wide * hvp)
        d_alpha = d_alpha.sum().view_as(alpha) if alpha.numel() == 1 else d_alpha.sum(0)
        return grad, d_plus.to(g_plus.dtype), -d_plus.to(g_minus.dtype), d_eps, d_alpha

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return loop_vmap(hvp_difference, info, in_dims, args)


class _DifferenceEager(_Difference):
    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        d_v, d_plus, d_minus, d_eps, d_alpha = tangents
        g_plus, g_minus, eps, alpha = ctx.saved_tensors
        acc, inverse = eps.dtype, _inverse_width(eps)
        hvp = (g_plus.to(acc) - g_minus.to(acc)) * inverse
        d_hvp = (d_plus.to(acc) - d_minus.to(acc)) * inverse - hvp * 2 * inverse * d_eps[:, None]
        result: Tensor = (d_v.to(acc) - d_alpha * hvp - alpha * d_hvp).to(d_v.dtype)
        return result


@torch.library.register_fake("fastmeta::hvp_perturb")
def _(theta: Tensor, v: Tensor, eps: Tensor) -> Sequence[Tensor]:
    return [theta.new_empty(theta.shape), theta.new_empty(theta.shape)]


@torch.library.register_fake("fastmeta::hvp_difference")
def _(v: Tensor, g_plus: Tensor, g_minus: Tensor, eps: Tensor, alpha: Tensor) -> Tensor:
    return v.new_empty(v.shape)
