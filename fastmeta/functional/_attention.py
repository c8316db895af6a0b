"""Attention that can be differentiated twice, in place of torch's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import has_torch_function

from fastmeta import ops
from fastmeta.functional._patching import FunctionPatch
from fastmeta.ops._function import is_constant

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class AttentionCall:
    """One call of `F.scaled_dot_product_attention` in a forward pass of a learner's module.

    Attributes:
        query: shape of the queries, `(..., heads, tokens, width)`.
        key: shape of the keys.
        reason: why torch's plain composition computed it; `None` where the compiled op did.
    """

    query: tuple[int, ...]
    key: tuple[int, ...]
    reason: str | None


# Of this thread: whether second derivatives may be taken, whether a forward pass is replaced, and
# who watches.
_twice: ContextVar[bool] = ContextVar("twice", default=False)
_replaced: ContextVar[bool] = ContextVar("replaced", default=False)
_calls: ContextVar[list[AttentionCall] | None] = ContextVar("calls", default=None)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention in this context has second derivatives, unlike torch's fused kernels.

    It is [`fastmeta.ops.attention`][] within `compiled_attention`, where that supports the
    arguments, and torch's plain composition elsewhere.
    """
    token = _twice.set(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _twice.reset(token)


@contextmanager
def watch_attention() -> Iterator[list[AttentionCall]]:
    """Lists the calls of attention in learners' modules where second derivatives are taken.

    ```python
    with fastmeta.functional.watch_attention() as calls:
        learner.step(batch)
    ```
    """
    calls: list[AttentionCall] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


@contextmanager
def compiled_attention() -> Iterator[None]:
    """`F.scaled_dot_product_attention` is the compiled op where second derivatives are taken."""
    if not _twice.get():
        yield
        return
    token = _replaced.set(True)
    try:
        with _patch:
            yield
    finally:
        _replaced.reset(token)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`."""
    tensors = query, key, value, attn_mask
    # In another thread the patch may not be wanted.
    wanted = not torch.compiler.is_compiling() and _replaced.get()
    reason = _unsupported(*tensors, dropout_p, is_causal, enable_gqa) if wanted else None
    calls = _calls.get()
    if wanted and calls is not None:
        calls.append(AttentionCall(tuple(query.shape), tuple(key.shape), reason))
    if not wanted or reason is not None:
        result: Tensor = _patch.original(
            *tensors, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return result
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return ops.attention(query, key, value, attn_mask, causal=is_causal, scale=scale)


def _unsupported(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    grouped: bool,
) -> str | None:
    """Why the compiled op cannot take the arguments, if so."""
    tensors = (q, k, v) if mask is None else (q, k, v, mask)
    if has_torch_function(tensors):
        return "a tensor subclass"
    if any(t.device.type != "cpu" for t in tensors):
        return "not on the CPU"
    if dropout > 0:
        return "dropout"
    if not torch.is_autocast_enabled("cpu") and not (q.dtype == k.dtype == v.dtype):
        return "several dtypes"
    if q.dtype not in _DTYPES:
        return f"dtype {q.dtype}"
    if not q.dim() == k.dim() == v.dim() >= 3 or not q.shape[:-3] == k.shape[:-3] == v.shape[:-3]:
        return "shapes that are broadcast"
    heads, kv_heads = q.shape[-3], k.shape[-3]
    if kv_heads != v.shape[-3] or not (heads == kv_heads or (grouped and heads % kv_heads == 0)):
        return "shapes that are broadcast"
    return None if mask is None else _unsupported_mask(mask, causal)


def _unsupported_mask(mask: Tensor, causal: bool) -> str | None:
    if causal:
        return "a causal mask and another one"
    return None if is_constant(mask) else "a mask with a gradient"


_patch = FunctionPatch("scaled_dot_product_attention", _attention)
