"""Reference implementations of the similarity ops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastmeta.reference.dtypes import accumulation_dtype


def row_similarity(a: Tensor, b: Tensor, bounds: Sequence[int]) -> Tensor:
    """Reference implementation of [`fastmeta.ops.row_similarity`][]."""
    acc = accumulation_dtype(a.dtype)
    a, b = a.to(acc), b.to(acc)
    products = torch.stack([a * b, a * a, b * b], dim=-1)
    return torch.stack([products[:, i:j].sum(1) for i, j in pairwise(bounds)], dim=1)


def mean_similarity(g: Tensor) -> Tensor:
    """Reference implementation of [`fastmeta.ops.mean_similarity`][]."""
    g = g.to(accumulation_dtype(g.dtype))
    return torch.stack([g @ g.sum(0), (g * g).sum(1)], dim=1)
