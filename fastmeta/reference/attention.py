"""Reference implementations of the attention ops: plain PyTorch, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Reference implementation of [`fastmeta.ops.attention`][]: all scores at once."""
    if q.dim() > 2 and q.shape[-3] != k.shape[-3]:
        group = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = _seen(q, k, causal, window)
    if mask is not None and mask.dtype == torch.bool:
        seen = seen & mask
    elif mask is not None:
        scores = scores + mask
        seen = seen & (mask != -torch.inf)
    # No -inf in the rows without a key, whose softmax would have no derivative.
    some = seen.any(-1, keepdim=True)
    weights = scores.masked_fill(some & ~seen, -torch.inf).masked_fill(~some, 0).softmax(-1)
    return weights.masked_fill(~some, 0) @ v


def _seen(q: Tensor, k: Tensor, causal: bool, window: int | None) -> Tensor:
    """Which keys a query sees, `(queries, keys)`."""
    i = torch.arange(q.shape[-2], device=q.device)[:, None]
    j = torch.arange(k.shape[-2], device=q.device)
    seen = j <= i if causal else (j >= 0).expand(len(i), -1)
    return seen & ((i - j).abs() < window) if window else seen


def _of(
    mask: Tensor | None, causal: bool, window: int | None, scale: float | None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The output as a function of the differentiable inputs."""
    return lambda q, k, v: attention(q, k, v, mask, causal, window, scale)


def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `<dout, out>` with respect to `q`, `k` and `v` (VJP)."""
    vjp = torch.func.vjp(_of(mask, causal, window, scale), q, k, v)[1]
    grads: tuple[Tensor, Tensor, Tensor] = vjp(dout)
    return grads


def attention_tangent(
    tq: Tensor,
    tk: Tensor,
    tv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """The directional derivative of the output along `(tq, tk, tv)` (JVP)."""
    function = _of(mask, causal, window, scale)
    tangent: Tensor = torch.func.jvp(function, (q, k, v), (tq, tk, tv))[1]
    return tangent


def attention_second(
    dout: Tensor,
    tdout: Tensor | None,
    tq: Tensor,
    tk: Tensor,
    tv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """JVPs along `(tdout, tq, tk, tv)`: of the output, and of the gradients of `q`, `k` and `v`."""

    def both(dout: Tensor, *tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        value: Any = torch.func.vjp(_of(mask, causal, window, scale), *tensors)
        out, vjp = value
        return out, vjp(dout)

    along = torch.zeros_like(dout) if tdout is None else tdout
    results: Any = torch.func.jvp(both, (dout, q, k, v), (along, tq, tk, tv))
    tout, (dq, dk, dv) = results[1]
    return tout, dq, dk, dv
