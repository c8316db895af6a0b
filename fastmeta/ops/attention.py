"""Scaled dot-product attention with fused first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta._checks import check_bool, check_integer, check_number
from fastmeta.backend import kernels
from fastmeta.ops._function import (
    apply,
    is_constant,
    merge_batch,
    needs_autograd,
    split_batch,
)
from fastmeta.ops._torch_derivatives import with_torch_derivatives


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """`softmax(scale * q @ k.T + mask) @ v` in memory linear in the number of tokens.

    Arguments are those of `torch.nn.functional.scaled_dot_product_attention`, without dropout.
    Forward, backward, double backward and forward mode (of forward and of backward) are kernels
    that never hold the matrix of scores; [the equations](../how-to/attention.md). Third
    derivatives are PyTorch's of the composition, and do hold it. `vmap` makes one call. Half
    precision is computed in float32. Results do not depend on the number of threads. The CUDA
    kernels (heads at most 128 wide) have not yet run on a GPU; in half precision, from compute
    capability 8.0 on, they use tensor cores, for which the probabilities and their derivatives are
    rounded to the dtype of `q`.

    Args:
        q: `(..., heads, queries, width)`; float64, float32, float16 or bfloat16.
        k: `(..., kv_heads, keys, width)`, dtype of `q`. `kv_heads` divides `heads`: consecutive
            heads of `q` share one head of `k` and `v` (grouped queries).
        v: `(..., kv_heads, keys, value_width)`, dtype of `q`.
        mask: broadcastable to `(..., heads, queries, keys)`: boolean, true where a query sees a
            key; or floating point, added to the scores. A query that sees no key has output 0.
        causal: whether query `i` sees keys `j <= i` only, also if there are more keys.
        window: sees only keys with `|i - j| < window`; `None` for all.
        scale: of the products; `width ** -0.5` by default.

    Returns:
        `(..., heads, queries, value_width)`.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match, or the mask requires a gradient.
        ValueError: if `causal` is no boolean, `window` no positive integer or `scale` not finite.
        TypeError: if the mask is not a boolean or floating-point tensor.
        NotImplementedError: if the tensors are on a GPU, and the build has no CUDA kernels.
    """
    check_bool("causal", causal)
    if window is not None:
        check_integer("window", window, 1)
    if scale is not None:
        check_number("scale", scale)
    if min(q.dim(), k.dim(), v.dim()) < 2 or not q.dim() == k.dim() == v.dim():
        raise RuntimeError(
            "fastmeta: attention: expected q, k and v with the same number of dimensions, (..., "
            f"heads, tokens, width), got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}."
        )
    if q.shape[:-3] != k.shape[:-3] or k.shape[:-3] != v.shape[:-3]:
        raise RuntimeError(
            "fastmeta: attention: the batch dimensions of q, k and v must be equal, got "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}. Expand them first."
        )
    own_mask = None if mask is None else _four_dimensional_mask(mask, q)
    own_scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    tensors = map(_four_dimensional, (q, k, v))
    out, _ = _forward(*tensors, own_mask, causal, window or 0, own_scale)
    return out.reshape(*q.shape[:-1], v.shape[-1])


def _four_dimensional(t: Tensor) -> Tensor:
    return t.flatten(0, -4) if t.dim() >= 4 else t[(None,) * (4 - t.dim())]


def _four_dimensional_mask(mask: Tensor, q: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"fastmeta: attention: the mask must be a boolean or floating-point tensor, got {kind}."
        )
    if not is_constant(mask):
        raise RuntimeError(
            "fastmeta: attention: the mask has no gradient here. Detach it, or use "
            "F.scaled_dot_product_attention under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)."
        )
    if mask.dtype != torch.bool:
        mask = mask.detach().to(q.dtype)
    if mask.dim() <= 4 and q.dim() <= 4:
        return mask[(None,) * (4 - mask.dim())]
    heads = mask[(None,) * max(3 - mask.dim(), 0)].shape[-3:]
    return mask.expand(*q.shape[:-3], *heads).flatten(0, -4)


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    """Output and row statistics, from `q, k, v, mask, causal, window, scale`."""
    if needs_autograd(*args[:3]):
        out, stats = apply(_Attention, _AttentionEager, *args)
    else:
        out, stats = kernels.attention_forward.default(*args)
    return out, stats


def _backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `q, k, v`, from `dout, q, k, v, mask, out, stats, causal, window, scale`."""
    if needs_autograd(*args[:4]):
        dq, dk, dv = apply(_Backward, _BackwardEager, *args)
    else:
        dq, dk, dv = kernels.attention_backward.default(*args)
    return dq, dk, dv


def _batched(
    function: Callable[..., Any], info: Any, in_dims: Sequence[Any], args: Sequence[Any]
) -> tuple[Any, Any]:
    """A `vmap` rule: one call, with the batch merged into the first dimension."""
    size = info.batch_size
    batch = _element_shape(args[0], in_dims[0])[0]

    def merged(arg: Any, dim: int | None) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        shape = _element_shape(arg, dim)
        if shape[0] != batch:  # a mask that is broadcast
            if dim is None:
                return arg
            arg, dim = arg.movedim(dim, 0).expand(-1, batch, *shape[1:]), 0
        return merge_batch(arg, dim, size)

    outputs = function(*map(merged, args, in_dims))
    if isinstance(outputs, Tensor):
        return split_batch(outputs, size), 0
    return tuple(split_batch(t, size) for t in outputs), (0,) * len(outputs)


def _element_shape(t: Tensor, dim: int | None) -> torch.Size:
    return t.shape if dim is None else t.select(dim, 0).shape


# The JVP of the output, from `tq, tk, tv, q, k, v, mask, out, stats, causal, window, scale`.
_tangent = with_torch_derivatives(
    lambda *args: kernels.attention_tangent.default(*args),
    lambda *args: reference.attention_tangent(*args[:7], *args[9:]),
    6,
    _batched,
)

# The JVPs along `(tdout, tq, tk, tv)` of the output and of the gradients of `q, k, v`, from `dout,
# tdout, tq, tk, tv, q, k, v, mask, out, stats, causal, window, scale`; `tdout` may be `None`. See
# `csrc/include/fastmeta/attention.h`.
_second = with_torch_derivatives(
    lambda *args: kernels.attention_second.default(*args),
    lambda *args: reference.attention_second(*args[:9], *args[11:]),
    8,
    _batched,
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def reference_impl(*args: Any) -> Any:
        return reference.attention(*args), args[0].new_empty(0)

    @staticmethod
    def forward(*args: Any) -> Any:
        return tuple(kernels.attention_forward.default(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.causal, ctx.window, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _stats: Any) -> Any:
        grads = _backward(dout, *ctx.saved_tensors, ctx.causal, ctx.window, ctx.scale)
        return *grads, *(None,) * 4

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _batched(_forward, info, in_dims, args)


class _AttentionEager(_Attention):
    @staticmethod
    def jvp(ctx: Any, tq: Tensor, tk: Tensor, tv: Tensor, *_rest: Any) -> Any:
        saved = ctx.saved_tensors
        return _tangent(tq, tk, tv, *saved, ctx.causal, ctx.window, ctx.scale), None


class _Backward(torch.autograd.Function):
    @staticmethod
    def reference_impl(*args: Any) -> Any:
        return reference.attention_backward(*args[:5], *args[7:])

    @staticmethod
    def forward(*args: Any) -> Any:
        return tuple(kernels.attention_backward.default(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.causal, ctx.window, ctx.scale = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, tq: Tensor, tk: Tensor, tv: Tensor) -> Any:
        dout, *others = ctx.saved_tensors
        options = ctx.causal, ctx.window, ctx.scale
        # The output and its statistics are functions of q, k and v, whose gradients include theirs.
        return *_second(dout, None, tq, tk, tv, *others, *options), *(None,) * 6

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _batched(_backward, info, in_dims, args)


class _BackwardEager(_Backward):
    @staticmethod
    def jvp(ctx: Any, tdout: Tensor, tq: Tensor, tk: Tensor, tv: Tensor, *_rest: Any) -> Any:
        dout, *others = ctx.saved_tensors
        options = ctx.causal, ctx.window, ctx.scale
        return _second(dout, tdout, tq, tk, tv, *others, *options)[1:]


def _output(q: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:-1], v.shape[-1])


@torch.library.register_fake("fastmeta::attention_forward")
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> list[Tensor]:
    stats = q.new_empty(*q.shape[:2], 2, q.shape[2], dtype=reference.accumulation_dtype(q.dtype))
    return [_output(q, v), stats]


@torch.library.register_fake("fastmeta::attention_backward")
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (q, k, v)]


@torch.library.register_fake("fastmeta::attention_tangent")
def _(tq: Tensor, tk: Tensor, tv: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return _output(q, v)


@torch.library.register_fake("fastmeta::attention_second")
def _(dout: Tensor, tdout: Any, tq: Any, tk: Any, tv: Any, *args: Any) -> list[Tensor]:
    q, k, v = args[:3]
    return [_output(q, v), *(t.new_empty(t.shape) for t in (q, k, v))]
