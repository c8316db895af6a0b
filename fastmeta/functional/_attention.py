"""Attention in place of torch's, and who watches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from fastmeta import ops
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


# Who watches in this thread.
_calls: ContextVar[list[AttentionCall] | None] = ContextVar("calls", default=None)


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


def attention(
    torchs: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`, see `_calls`."""
    tensors = query, key, value, attn_mask
    reason = _unsupported(*tensors, dropout_p, is_causal, enable_gqa)
    calls = _calls.get()
    if calls is not None:
        calls.append(AttentionCall(tuple(query.shape), tuple(key.shape), reason))
    if reason is not None:
        return torchs(*tensors, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
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
