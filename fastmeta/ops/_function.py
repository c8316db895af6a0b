"""Shared helpers of the differentiable ops.

The compiled ops have no registered autograd formula, which would break `torch.func`. Instead,
each op is a pair of `autograd.Function` classes: `X` has `setup_context`, a backward of
differentiable torch ops, a `vmap` rule and its `reference_impl` in PyTorch; `XEager(X)` adds
`jvp`, which `torch.compile` cannot trace. Where neither autograd nor a transform is active, the
compiled op is called directly, at a tenth of the overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version


def transform_active() -> bool:
    """Whether a `torch.func` transform or forward-mode AD is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def needs_autograd(*tensors: Tensor) -> bool:
    """Whether this call must be visible to autograd, `torch.func` or forward-mode AD."""
    return transform_active() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def is_constant(tensor: Tensor) -> bool:
    """Whether neither a gradient nor a tangent of the tensor is wanted."""
    if tensor.requires_grad or forward_ad._current_level < 0:
        return not tensor.requires_grad
    functorch = torch._C._functorch
    while functorch.is_batchedtensor(tensor):  # has no rule for unpack_dual
        tensor = functorch.get_unwrapped(tensor)
    return forward_ad.unpack_dual(tensor).tangent is None


def apply(function: Any, eager: Any, *args: Any) -> Any:
    """Dispatches to the variant that works under the active transforms and `torch.compile`.

    Under a transform, `torch.compile` traces through a Function and drops its backward: the
    gradient would be zero. The reference implementation is differentiable as it is.
    """
    if not torch.compiler.is_compiling():
        return (eager if transform_active() else _plain(function)).apply(*args)
    if transform_active():
        return function.reference_impl(*args)
    return function.apply(*_without_duplicates(args))


@cache
def _plain(function: Any) -> Any:
    """The Function for plain autograd: without `setup_context`, a call costs 40 us less."""

    def forward(ctx: Any, *args: Any) -> Any:
        output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (torch.autograd.Function,), methods)


def _without_duplicates(args: Sequence[Any]) -> list[Any]:
    """The arguments with repeated tensors as views: `torch.compile` refuses one tensor twice."""
    seen: list[Any] = []
    result = []
    for arg in args:
        repeated = isinstance(arg, Tensor) and any(arg is other for other in seen)
        result.append(arg.view_as(arg) if repeated else arg)
        seen.append(arg)
    return result


def loop_vmap(
    function: Callable[..., Any], info: Any, in_dims: Sequence[Any], args: Sequence[Any]
) -> tuple[Any, Any]:
    """A `vmap` rule: one call per batch element, results stacked along a new first dimension."""
    if info.batch_size == 0:
        raise RuntimeError("fastmeta: vmap needs at least one element, got a batch of size 0.")
    # A list or tuple of numbers as an argument has a list or tuple of dims.
    results = [
        function(
            *(
                arg.select(dim, i) if isinstance(dim, int) else arg
                for arg, dim in zip(args, in_dims, strict=True)
            )
        )
        for i in range(info.batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def batch_first(tensor: Tensor, in_dim: int | None, size: int) -> Tensor:
    """A `vmap` argument with the batch dimension first, expanded if it has none."""
    return tensor.expand(size, *tensor.shape) if in_dim is None else tensor.movedim(in_dim, 0)


def merge_batch(tensor: Tensor, in_dim: int | None, size: int) -> Tensor:
    """A `vmap` argument with the batch dimension merged into the first one."""
    return batch_first(tensor, in_dim, size).flatten(0, 1)


def split_batch(batch: Tensor, size: int) -> Tensor:
    """The inverse of `merge_batch`: the batch dimension split off again."""
    elements: Tensor = batch.unflatten(0, (size, -1))
    return elements


def merged_vmap(
    function: Callable[..., Any], info: Any, in_dims: Sequence[Any], args: Sequence[Any]
) -> tuple[Any, Any]:
    """A `vmap` rule: one call, with the batch merged into the first dimension of each tensor."""
    size = info.batch_size
    merged = [
        merge_batch(arg, dim, size) if isinstance(arg, Tensor) else arg
        for arg, dim in zip(args, in_dims, strict=True)
    ]
    outputs = function(*merged)
    if isinstance(outputs, Tensor):
        return split_batch(outputs, size), 0
    return tuple(split_batch(t, size) for t in outputs), (0,) * len(outputs)


def segment_bounds(g: Tensor, bounds: Sequence[int] | None) -> tuple[int, ...]:
    """`bounds` as a tuple; one segment of all columns by default."""
    if bounds is None:
        return (0, g.shape[-1] if g.dim() else 0)
    return tuple(bounds)


def bump_versions(tensors: Sequence[Tensor]) -> None:
    """Records an in-place write, so that backward rejects saved tensors that were overwritten."""
    increment_version(tensors)


def check_same_device(op: str, *tensors: Tensor) -> None:
    """Raises if the fake tensors of an in-place op are on several devices."""
    names = dict.fromkeys(str(t.device) for t in tensors)
    if len(names) > 1:
        raise RuntimeError(
            f"fastmeta: {op}: expected all tensors on one device, got {' and '.join(names)}. Move "
            "them with .to()."
        )
