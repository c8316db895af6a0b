"""Reference implementations of the packing ops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pack(tensors: Sequence[Tensor], rows: int) -> Tensor:
    """Reference implementation of [`fastmeta.ops.pack`][]."""
    per_task = len(tensors) // rows
    return torch.stack(
        [
            torch.cat([t.reshape(-1) for t in tensors[i * per_task : (i + 1) * per_task]])
            for i in range(rows)
        ]
    )


def pack_(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Reference implementation of [`fastmeta.ops.pack_`][]."""
    flat.copy_(pack(tensors, flat.shape[0]))


def unpack_(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Reference implementation of [`fastmeta.ops.unpack_`][]."""
    per_task = len(tensors) // flat.shape[0]
    for i, row in enumerate(flat):
        targets = tensors[i * per_task : (i + 1) * per_task]
        parts = row.split([t.numel() for t in targets])
        for target, part in zip(targets, parts, strict=True):
            target.copy_(part.view_as(target))
