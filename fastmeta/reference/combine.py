"""Reference implementation of the combine op."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastmeta.reference.dtypes import accumulation_dtype


def combine(buffers: Sequence[Tensor], coef: Tensor, bounds: Sequence[int]) -> Tensor:
    """Reference implementation of [`fastmeta.ops.combine`][]."""
    acc = accumulation_dtype(buffers[0].dtype)
    parts = []
    for s, (begin, end) in enumerate(pairwise(bounds)):
        terms = [coef[:, s, b] @ g[:, begin:end].to(acc) for b, g in enumerate(buffers)]
        parts.append(torch.stack(terms).sum(0))
    return torch.cat(parts).to(buffers[0].dtype)
