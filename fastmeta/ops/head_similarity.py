"""The gradient similarity loss of a linear head, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.backend import kernels
from fastmeta.ops._function import apply, merge_batch, split_batch, transform_active
from fastmeta.reference import accumulation_dtype
from fastmeta.reference.mlp import LOSSES

# Examples times classes times features of a task. Beyond these the reference implementation runs.
# On the CPU a thread computes a task: on one thread, in 0.4 to 0.7 times the reference's time up to
# here, and in the same time at 2**30 (benchmarks/NOTES.md). On CUDA a block computes a task; that
# limit is an estimate (csrc/include/fastmeta/head_similarity_plan.h).
MAX_PRODUCTS_CUDA = kernels.head_limit.default()
MAX_PRODUCTS_CPU = 2**28

_LOSS_IDS = {name: k for k, name in enumerate(LOSSES)}


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
    others. Heads beyond `MAX_PRODUCTS_CPU` or `MAX_PRODUCTS_CUDA` of this module, examples times
    classes times features of a task, are computed by the reference implementation, in matrix
    products.

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
    tensors = (features, logits, targets, weight, query_weight, query_bias)
    found = _call(*tensors, loss, inner_product, cosine, l2)
    if query_bias is None:
        grad_weight, similarity, d_features, d_weight = found
        return HeadSimilarity(grad_weight, None, similarity, d_features, d_weight, None)
    grad_weight, similarity, d_features, d_weight, grad_bias, d_bias = found
    return HeadSimilarity(grad_weight, grad_bias, similarity, d_features, d_weight, d_bias)


def _call(*args: Any) -> Sequence[Tensor]:
    if transform_active():
        found: Sequence[Tensor] = apply(_HeadSimilarity, _HeadSimilarity, *args)
        return found
    if torch.is_grad_enabled():
        with torch.no_grad():
            return _run(*args)
    return _run(*args)


def _run(*args: Any) -> Sequence[Tensor]:
    features, weight = args[0], args[3]
    # A bound of the products, as every call pays for it.
    if features.numel() * weight.numel() > MAX_PRODUCTS_CUDA and _is_large(features, weight):
        _check(*args[:7])
        return _reference(*args)
    *tensors, loss, inner_product, cosine, l2 = args
    found: Sequence[Tensor] = kernels.head_similarity.default(
        *tensors, _LOSS_IDS[loss], inner_product, cosine, l2
    )
    return found


def _is_large(features: Tensor, weight: Tensor) -> bool:
    if features.dim() != 3 or weight.dim() != 3:
        return False  # the kernel raises the error
    limit = MAX_PRODUCTS_CUDA if features.is_cuda else MAX_PRODUCTS_CPU
    return features.shape[1] * weight.shape[1:].numel() > limit


def _check(
    features: Tensor,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor,
    query_weight: Tensor,
    query_bias: Tensor | None,
    loss: str,
) -> None:
    """The checks of the compiled op, for the reference implementation."""
    (tasks, n, _), classes = features.shape, weight.shape[1]
    head, outputs = (tasks, classes, features.shape[2]), (tasks, n, classes)
    if not features.is_floating_point():
        raise RuntimeError(
            f"fastmeta: head_similarity: features: expected floating-point, got {features.dtype}."
        )
    mse = loss == "mse"
    expected = {
        "logits": (logits, outputs, features.dtype),
        "weight": (weight, head, features.dtype),
        "query_weight": (query_weight, head, features.dtype),
        "query_bias": (query_bias, (tasks, classes), features.dtype),
        "targets": (targets, outputs if mse else (tasks, n), features.dtype if mse else torch.long),
    }
    for name, (t, shape, dtype) in expected.items():
        if t is not None and (t.shape != shape or t.dtype != dtype or t.device != features.device):
            raise RuntimeError(
                f"fastmeta: head_similarity: {name}: expected {shape} of {dtype} on "
                f"{features.device}; got {tuple(t.shape)} of {t.dtype} on {t.device}."
            )
    if not mse and not targets.is_cuda:
        valid = ((targets >= 0) & (targets < classes)) | (targets == -100)
        if not valid.all():
            raise RuntimeError(
                f"fastmeta: head_similarity: targets: class {int(targets[~valid][0])} is not one "
                f"of the {classes} outputs, 0 to {classes - 1}."
            )


def _reference(*args: Any) -> list[Tensor]:
    """The reference implementation with the outputs of the compiled op."""
    g, g_bias, similarity, d_features, d_weight, d_bias = reference.head_similarity(*args)
    bias = [] if g_bias is None or d_bias is None else [g_bias, d_bias]
    return [g, similarity, d_features, d_weight, *bias]


class _HeadSimilarity(torch.autograd.Function):
    reference_impl = staticmethod(_reference)

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return tuple(_run(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise _no_derivative()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        raise _no_derivative()

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        size = info.batch_size
        tensors = [
            None if t is None else merge_batch(t, dim, size)
            for t, dim in zip(args[:6], in_dims[:6], strict=True)
        ]
        found = _call(*tensors, *args[6:])
        return tuple(split_batch(t, size) for t in found), (0,) * len(found)


def _no_derivative() -> RuntimeError:
    return RuntimeError(
        "fastmeta: head_similarity: this op has no derivative; detach its inputs, or use "
        "fastmeta.reference.head_similarity."
    )


@torch.library.register_fake("fastmeta::head_similarity")
def _(
    features: Tensor,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor,
    query_weight: Tensor,
    query_bias: Tensor | None,
    loss: int,
    inner_product: float,
    cosine: float,
    l2: float,
) -> Sequence[Tensor]:
    new, head = features.new_empty, weight.shape
    similarity = new(head[0], 3, dtype=accumulation_dtype(features.dtype))
    bias = [] if query_bias is None else [new(head[:2]), new(head[:2])]
    return [new(head), similarity, new(features.shape), new(head), *bias]
