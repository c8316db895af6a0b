"""Ops whose own derivatives are PyTorch's: the last ones of those with fused second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastmeta.ops._function import apply, needs_autograd

VmapRule = Callable[..., tuple[Any, Any]]


def with_torch_derivatives(
    kernel: Callable[..., Any], reference: Callable[..., Any], count: int, vmap: VmapRule
) -> Callable[..., Any]:
    """The op, differentiated by PyTorch's derivatives of its reference implementation.

    Args:
        kernel: the compiled op.
        reference: takes the same arguments.
        count: the op is differentiable in its first so many arguments, tensors or `None`; in all
            but the last ones if it is negative.
        vmap: `vmap(op, info, in_dims, args)`, the rule of the op.

    Returns:
        A function of the same arguments.
    """

    def run(*args: Any) -> Any:
        output = kernel(*args)
        return output if isinstance(output, Tensor) else tuple(output)

    class Plain(torch.autograd.Function):
        reference_impl = staticmethod(reference)

        @staticmethod
        def forward(*args: Any) -> Any:
            return run(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.others = [None if isinstance(arg, Tensor) else (arg,) for arg in inputs]
            tensors = [arg for arg in inputs if isinstance(arg, Tensor)]
            ctx.save_for_backward(*tensors)
            ctx.save_for_forward(*tensors)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            function, tensors, places = _given(reference, ctx, count)
            cotangents = grads[0] if len(grads) == 1 else grads
            found = torch.func.vjp(function, *tensors)[1](cotangents)
            return tuple(_spread(found, places, len(ctx.others)))  # no list

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
            return vmap(op, info, in_dims, args)

    class Eager(Plain):
        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            function, tensors, places = _given(reference, ctx, count)
            return tangent(function, tensors, [tangents[place] for place in places])

    def op(*args: Any) -> Any:
        if needs_autograd(*(arg for arg in args[:count] if arg is not None)):
            return apply(Plain, Eager, *args)
        return run(*args)

    return op


def tangent(function: Callable[..., Any], point: Sequence[Tensor], along: Sequence[Tensor]) -> Any:
    """The derivative of a function along a direction, also in a `forward_ad.dual_level`."""
    if forward_ad._current_level < 0 or torch._C._are_functorch_transforms_active():
        return torch.func.jvp(function, tuple(point), tuple(along))[1]
    # torch.func.jvp cannot be nested in one: the transpose of the transpose.
    found: Any = torch.func.vjp(function, *point)
    zero = torch.utils._pytree.tree_map(torch.zeros_like, found[0])
    return torch.func.vjp(found[1], zero)[1](tuple(along))[0]


def _given(
    reference: Callable[..., Any], ctx: Any, count: int
) -> tuple[Callable[..., Any], list[Tensor], list[int]]:
    """The reference as a function of the differentiable tensors; these; and their places."""
    saved = (t.contiguous() for t in ctx.saved_tensors)  # forward mode takes no expanded tensors
    args = [next(saved) if other is None else other[0] for other in ctx.others]
    places = [place for place, arg in enumerate(args[:count]) if arg is not None]

    def function(*tensors: Tensor) -> Any:
        return reference(*_spread(tensors, places, len(args), args))

    return function, [args[place] for place in places], places


def _spread(
    values: Sequence[Any], places: Sequence[int], length: int, default: Sequence[Any] | None = None
) -> list[Any]:
    """A list with the values at their places, and the default or `None` elsewhere."""
    result = [None] * length if default is None else list(default)
    for place, value in zip(places, values, strict=True):
        result[place] = value
    return result
