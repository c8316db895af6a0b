"""Heads with features and targets, and comparison of head similarities with autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta import ops, reference
from fastmeta.ops import HeadSimilarity
from fastmeta.reference.mlp import LOSSES

# Relative to the norm of the result for absolute inputs.
TOLERANCE = {
    torch.float64: 1e-14,
    torch.float32: 2e-6,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-10,
}
# (examples, classes, features)
SIZES = [(1, 1, 1), (5, 5, 64), (7, 3, 33), (1, 17, 130), (25, 20, 65), (33, 2, 16), (6, 40, 100)]
MIXTURE = {"inner_product": 0.7, "cosine": 0.4, "l2": 0.2}
WEIGHTS: dict[str, dict[str, float]] = {
    "inner product": {},
    "cosine": {"inner_product": 0.0, "cosine": 1.0},
    "l2": {"inner_product": 0.0, "l2": 1.0},
    "mixture": MIXTURE,
}


def problem(
    size: tuple[int, int, int],
    loss: str = "cross_entropy",
    tasks: int = 3,
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
) -> list[Any]:
    """Features, logits, targets, weight, query weight and query bias."""
    n, classes, width = size

    def randn(*shape: int) -> Tensor:
        return torch.randn(tasks, *shape, dtype=torch.float64).to(dtype)

    targets = randn(n, classes) if loss == "mse" else torch.randint(classes, (tasks, n))
    return [
        *(randn(n, width), randn(n, classes), targets),
        *(randn(classes, width), randn(classes, width), randn(classes) if bias else None),
    ]


def by_autograd(args: Sequence[Any], loss: str, **weights: float) -> HeadSimilarity:
    """The definition, in float64: autograd of autograd through the layer and the loss."""
    inner_product, cosine, l2 = (
        weights.get(name, default)
        for name, default in (("inner_product", 1.0), ("cosine", 0.0), ("l2", 0.0))
    )
    results = []
    for task in zip(*(t if t is not None else [None] * len(args[0]) for t in args), strict=True):
        x, z, y, weight, v, v_bias = (
            t if t is None or t.dtype == torch.int64 else t.double() for t in task
        )
        # The bias of each example that gives these logits, and a common one to differentiate.
        offset = z - x @ weight.mT
        inputs = [x.requires_grad_(), weight.requires_grad_()]
        shift = torch.zeros_like(weight[:, 0]).requires_grad_()
        inputs += [shift] if v_bias is not None else []
        value = LOSSES[loss](F.linear(inputs[0], inputs[1]) + offset + shift, y)
        grads = torch.autograd.grad(value, inputs[1:], create_graph=True)
        queries = [v] if v_bias is None else [v, v_bias]
        fixed = [g.detach() for g in grads]
        dot, square, query_square = (
            sum(((a * b).sum() for a, b in zip(left, right, strict=True)), start=x.new_zeros(()))
            for left, right in ((fixed, queries), (fixed, fixed), (queries, queries))
        )
        total, along = inner_product + cosine + l2, l2 + (cosine * dot / square if square else 0.0)
        direction = [total * q - along * g for q, g in zip(queries, fixed, strict=True)]
        found = torch.autograd.grad(grads, inputs, direction)
        bias = [fixed[1], found[2]] if v_bias is not None else [None, None]
        similarity = torch.stack([dot, square, query_square])
        results.append((fixed[0], bias[0], similarity, found[0], found[1], bias[1]))
    return HeadSimilarity(
        *(None if parts[0] is None else torch.stack(parts) for parts in zip(*results, strict=True))
    )


def check(found: HeadSimilarity, args: Sequence[Any], loss: str, **weights: float) -> None:
    """Compares all results by norm with autograd in float64."""
    expected = by_autograd(args, loss, **weights)
    dtype = args[0].dtype
    for field, x, y in zip(found._fields, found, expected, strict=True):
        if y is None:
            assert x is None
            continue
        assert x is not None
        wide = reference.accumulation_dtype(dtype) if field == "similarity" else dtype
        assert x.dtype == wide
        assert x.shape == y.shape
        size = y.norm() + 0.1
        assert (x.double() - y).norm() <= 100 * TOLERANCE[dtype] * size, field


def compare(args: Sequence[Any], loss: str, **weights: float) -> None:
    check(ops.head_similarity(*args, loss=loss, **weights), args, loss, **weights)
