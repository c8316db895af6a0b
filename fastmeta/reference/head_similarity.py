"""Reference implementation of the gradient similarity loss of a head."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.reference.dtypes import accumulation_dtype

_IGNORED = -100  # torch's default ignore_index


def head_similarity(
    features: Tensor,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor,
    query_weight: Tensor,
    query_bias: Tensor | None,
    loss: str,
    inner_product: float,
    cosine: float,
    l2: float,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor | None]:
    """Reference implementation of [`fastmeta.ops.head_similarity`][].

    A class index out of range makes its task's gradients NaN on every device.
    """
    acc, bias = accumulation_dtype(features.dtype), query_bias is not None
    x, z, w, v = (t.to(acc) for t in (features, logits, weight, query_weight))
    scale: float | Tensor
    if loss == "mse":
        scale = 2 / max(z.shape[1:].numel(), 1)
        delta = scale * (z - targets.to(acc))
    else:
        scale, p = _weights(targets, z.shape[-1], acc), z.softmax(-1)
        classes = torch.arange(z.shape[-1], device=z.device)
        delta = scale * (p - (targets.unsqueeze(-1) == classes).to(acc))
    g, g_bias = delta.mT @ x, delta.sum(1)
    v_bias = torch.zeros_like(g_bias) if query_bias is None else query_bias.to(acc)
    dot, square, query_square = (
        (a * b).sum((1, 2)) + (a_bias * b_bias).sum(1) if bias else (a * b).sum((1, 2))
        for a, a_bias, b, b_bias in (
            (g, g_bias, v, v_bias),
            (g, g_bias, g, g_bias),
            (v, v_bias, v, v_bias),
        )
    )
    total = inner_product + cosine + l2
    direction, shift = total * v, total * v_bias
    if cosine or l2:
        along = l2 + cosine * torch.where(square > 0, dot / square, 0)
        direction = direction - along[:, None, None] * g
        shift = shift - along[:, None] * g_bias
    r = x @ direction.mT
    if bias:
        r = r + shift.unsqueeze(1)
    s = scale * r if loss == "mse" else scale * p * (r - (p * r).sum(-1, keepdim=True))
    d_features, d_weight = delta @ direction + s @ w, s.mT @ x
    dtype = features.dtype
    return (
        g.to(dtype),
        g_bias.to(dtype) if bias else None,
        torch.stack([dot, square, query_square], dim=1),
        d_features.to(dtype),
        d_weight.to(dtype),
        s.sum(1).to(dtype) if bias else None,
    )


def _weights(targets: Tensor, classes: int, acc: torch.dtype) -> Tensor:
    """The weight of each example in the mean, `(T, n, 1)`: 0 if ignored, NaN in invalid tasks."""
    counts = targets != _IGNORED
    invalid = (counts & ((targets < 0) | (targets >= classes))).any(1, keepdim=True)
    mean = 1 / counts.sum(1, keepdim=True).clamp(min=1).to(acc)
    mean = torch.where(invalid, torch.nan, mean)
    return (mean * counts.to(acc)).unsqueeze(-1)
