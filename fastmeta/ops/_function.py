"""What the differentiable ops share.

The compiled ops carry no autograd formula: registered ones break ``torch.func``. Each op is instead
a pair of ``autograd.Function``: ``X`` with ``setup_context``, a backward of differentiable torch
ops, a ``vmap`` rule and its torch ``twin``, and ``XEager(X)`` that adds ``jvp``, which
``torch.compile`` cannot trace. Where nothing watches, the compiled op is called directly, at a
tenth of the overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version


def transformed() -> bool:
    """Whether a ``torch.func`` transform or forward-mode AD is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def needs_autograd(*tensors: Tensor) -> bool:
    """Whether autograd, a ``torch.func`` transform or forward-mode AD may look at this call."""
    return transformed() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def apply(function: Any, eager: Any, *args: Any) -> Any:
    """Calls the variant that the surroundings can handle.

    Under a transform, ``torch.compile`` traces through a Function and forgets its backward: the
    gradient would be zero. The twin is differentiable as it stands.
    """
    if not torch.compiler.is_compiling():
        return (eager if transformed() else _plain(function)).apply(*args)
    return function.twin(*args) if transformed() else function.apply(*_distinct(args))


@cache
def _plain(function: Any) -> Any:
    """The Function for autograd alone: without ``setup_context``, a call costs 40 us less."""

    def forward(ctx: Any, *args: Any) -> Any:
        output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (torch.autograd.Function,), methods)


def _distinct(args: Sequence[Any]) -> list[Any]:
    """``torch.compile`` refuses a Function that is given one tensor twice: views instead."""
    seen: list[Any] = []
    result = []
    for arg in args:
        again = isinstance(arg, Tensor) and any(arg is other for other in seen)
        result.append(arg.view_as(arg) if again else arg)
        seen.append(arg)
    return result


def loop_vmap(
    function: Callable[..., Any], info: Any, in_dims: Sequence[Any], args: Sequence[Any]
) -> tuple[Any, Any]:
    """A ``vmap`` rule: one call an element, results stacked along a new first dimension."""
    if info.batch_size == 0:
        raise RuntimeError("fastmeta: vmap needs at least one element, got a batch of size 0.")
    # The dims of an argument that is a list or tuple of numbers are one, too.
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


def stacked(tensor: Tensor, in_dim: int | None, size: int) -> Tensor:
    """A tensor under ``vmap`` with its ``size`` elements in front, repeated if they share it."""
    return tensor.expand(size, *tensor.shape) if in_dim is None else tensor.movedim(in_dim, 0)


def fold(tensor: Tensor, in_dim: int | None, size: int) -> Tensor:
    """The same for a batch: all elements' batches one after the other."""
    return stacked(tensor, in_dim, size).flatten(0, 1)


def unfold(batch: Tensor, size: int) -> Tensor:
    """The elements' own batches again."""
    elements: Tensor = batch.unflatten(0, (size, -1))
    return elements


def cuts(rows: Tensor, bounds: Sequence[int] | None) -> tuple[int, ...]:
    """The segment bounds asked for: one segment over all columns by default."""
    if bounds is None:
        return (0, rows.shape[-1] if rows.dim() else 0)
    return tuple(bounds)


def written(tensors: Sequence[Tensor]) -> None:
    """Counts a write of a compiled op, so that backward refuses values that it overwrote."""
    increment_version(tensors)


def one_device(op: str, *tensors: Tensor) -> None:
    """Refuses fakes of an op in place on several devices, of which it would write nothing."""
    names = dict.fromkeys(str(t.device) for t in tensors)
    if len(names) > 1:
        raise RuntimeError(
            f"fastmeta: {op}: expected all tensors on one device, got {' and '.join(names)}. Move "
            "them with .to()."
        )
