"""The gradient similarity loss of a linear head, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.reference.mlp import LOSSES


class HeadSimilarity(NamedTuple):
    """The results of [`head_similarity`][fastmeta.ops.head_similarity].

    In the dtype of the features; without a bias, `grad_bias` and `d_bias` are `None`.

    Attributes:
        grad_weight: `(T, C, d)`, the support gradient `g` of the head's weight.
        grad_bias: `(T, C)`, and of its bias.
        similarity: `(T, 3)`, `<g, v>`, `|g|^2` and `|v|^2` over weight and bias together; float64
            for float64, else float32.
        d_features: `(T, n, d)`, the derivative of `<g, D>` with respect to the features.
        d_weight: `(T, C, d)`, with respect to the weight.
        d_bias: `(T, C)`, with respect to the bias.
    """

    grad_weight: Tensor
    grad_bias: Tensor | None
    similarity: Tensor
    d_features: Tensor
    d_weight: Tensor
    d_bias: Tensor | None


def head_similarity(
    features: Tensor,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor,
    query_weight: Tensor,
    query_bias: Tensor | None = None,
    *,
    loss: str,
    inner_product: float = 1.0,
    cosine: float = 0.0,
    l2: float = 0.0,
) -> HeadSimilarity:
    """The gradient of the support loss of a linear head, and that of its similarity to `v`.

    With `delta = dloss/dlogits`, the head's support gradient is `g = (delta^T features, sum_i
    delta_i)`. `v`, the head's query gradient, is held fixed. Of the similarity `<g, D>`, with

    `D = (inner_product + cosine + l2) v - (l2 + cosine <g, v> / |g|^2) g`

    held constant (the quotient is 0 where `g` is 0), the derivatives with respect to the features,
    the weight and the bias follow in closed form. With `r_i = D_W features_i + D_b` and `s_i = J_i
    r_i`, `J_i = ddelta_i/dlogits_i`:

    `d_features_i = D_W^T delta_i + W^T s_i`, `d_weight = sum_i s_i features_i^T`,
    `d_bias = sum_i s_i`

    Not differentiable: the results carry no graph. The result of a task does not depend on the
    others.

    Args:
        features: `(T, n, d)`, the inputs of the head; float64, float32, float16 or bfloat16.
        logits: `(T, n, C)`, its outputs.
        targets: `(T, n)` int64 class indices for `"cross_entropy"`, where -100 is ignored; without
            any other, the gradients are 0, as autograd's. `(T, n, C)` for `"mse"`. On CUDA, where a
            check would need a synchronization, an index out of range makes its task's results NaN.
        weight: `(T, C, d)`, the head's weight.
        query_weight: `(T, C, d)`, `v` of the weight.
        query_bias: `(T, C)`, `v` of the bias; `None` for a head without a bias.
        loss: `"mse"` or `"cross_entropy"`, both with mean reduction.
        inner_product: weight of the inner product `<g, v>`.
        cosine: weight of the cosine, times `|g| |v|` held fixed.
        l2: weight of `-|g - v|^2 / 2`.

    Raises:
        ValueError: if the loss is unknown.
        RuntimeError: if shapes, dtypes, devices or class indices do not match.
    """
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; expected one of {', '.join(LOSSES)}.")
    with torch.no_grad():
        return HeadSimilarity(
            *reference.head_similarity(
                *(features, logits, targets, weight, query_weight, query_bias),
                *(loss, inner_product, cosine, l2),
            )
        )
