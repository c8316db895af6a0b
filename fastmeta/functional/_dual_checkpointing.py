"""Activation checkpointing in forward-over-reverse differentiation.

`torch.utils.checkpoint` keeps the tangents of all activations, which it cannot recompute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastmeta.functional.rng import RngState, preserve_rng

# A segment's forward pass as a function of its parameters, arguments and keyword arguments.
Run = Callable[..., Any]


def in_forward_mode() -> bool:
    """Whether forward-mode AD is active (that of `torch.autograd.forward_ad`)."""
    return forward_ad._current_level >= 0


def checkpoint_duals(
    first: Run, again: Run, params: Mapping[str, Tensor], *args: Any, **kwargs: Any
) -> Any:
    """The results of a segment, of which only inputs and their tangents are kept.

    The backward pass evaluates the segment again, with tangents, the same random numbers and under
    the same autocast and context variables.

    Args:
        first: the forward pass, called with the other arguments.
        again: repeats it for other values of `params`, which come first.
        params: the segment's parameters, dual tensors or not.
        *args: of the segment.
        **kwargs: of the segment.
    """
    leaves, structure = tree_flatten((dict(params), args, kwargs))
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    inputs = [leaves[i] for i in where]
    device = inputs[0].device

    def repeat(tensors: Sequence[Tensor]) -> list[Any]:
        own = list(leaves)
        for i, tensor in zip(where, tensors, strict=True):
            own[i] = tensor
        params, args, kwargs = tree_unflatten(own, structure)
        return tree_flatten(again(params, *args, **kwargs))[0]

    call = _Call(repeat, device)
    with torch.no_grad():
        results, returned = tree_flatten(first(*args, **kwargs))
    apply: Callable[..., Any] = _Segment.apply
    duals = [forward_ad.unpack_dual(r) for r in results if isinstance(r, Tensor)]
    call.primals = tuple(dual.primal.detach() for dual in duals)
    call.tangents = tuple(dual.tangent for dual in duals)
    outputs = iter(apply(call, *inputs))
    del call.primals, call.tangents
    return tree_unflatten(
        [next(outputs) if isinstance(r, Tensor) else r for r in results], returned
    )


class _Call:
    """A call of a segment that can be repeated.

    Args:
        repeat: the results for given tensors.
        device: of the tensors.

    Attributes:
        primals: the first results, until the node of the graph has them.
        tangents: theirs; `None` means zero.
    """

    primals: tuple[Tensor, ...]
    tangents: tuple[Tensor | None, ...]

    def __init__(self, repeat: Callable[[Sequence[Tensor]], list[Any]], device: torch.device):
        self._repeat = repeat
        self._rng = RngState.now(device)
        self._context = copy_context()  # the backward pass may run in another thread
        kind = device.type
        enabled = torch.is_autocast_enabled(kind)
        self._autocast = (kind, torch.get_autocast_dtype(kind), enabled)

    def again(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The results for `tensors`, with a graph."""
        with preserve_rng(self._rng.device), torch.autocast(*self._autocast):
            self._rng.set()
            results = self._context.copy().run(self._repeat, tensors)
        return [r for r in results if isinstance(r, Tensor)]


class _Segment(torch.autograd.Function):
    """The node of a segment: its first results, whose derivatives are computed from new ones."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(*(t for t in call.primals if not t.is_floating_point()))
        return call.primals

    @staticmethod
    def jvp(ctx: Any, *_tangents: Any) -> tuple[Tensor | None, ...]:
        tangents: tuple[Tensor | None, ...] = ctx.call.tangents
        return tangents

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            inputs = [_leaf(t, n) for t, n in zip(ctx.saved_tensors, needed, strict=True)]
            results = ctx.call.again(inputs)
            pairs = [
                (r, g)
                for r, g in zip(results, grads, strict=True)
                if g is not None and r.requires_grad
            ]
            wanted = [t for t, n in zip(inputs, needed, strict=True) if n]
            outputs, cotangents = zip(*pairs, strict=True) if pairs else ((), ())
            found = iter(torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True))
        return None, *(next(found) if n else None for n in needed)


def _leaf(tensor: Tensor, needs_grad: bool) -> Tensor:
    """A tensor with the same value and tangent and a graph of its own."""
    primal, tangent = forward_ad.unpack_dual(tensor)
    leaf: Tensor = primal.detach().requires_grad_(needs_grad)
    if tangent is not None:
        leaf = forward_ad.make_dual(leaf, tangent)
    return leaf
