"""Reference implementation of the Gram op."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastmeta.reference.dtypes import accumulation_dtype


def gram(g: Tensor, bounds: Sequence[int]) -> Tensor:
    """Reference implementation of [`fastmeta.ops.gram`][]."""
    g = g.to(accumulation_dtype(g.dtype))
    parts = [g[:, begin:end] for begin, end in pairwise(bounds)]
    return torch.stack([part @ part.mT for part in parts])
