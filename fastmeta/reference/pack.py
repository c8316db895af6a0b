"""Torch twins of the packing ops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pack(tensors: Sequence[Tensor], rows: int) -> Tensor:
    """See :func:`fastmeta.ops.pack`."""
    each = len(tensors) // rows
    return torch.stack(
        [
            torch.cat([t.reshape(-1) for t in tensors[i * each : (i + 1) * each]])
            for i in range(rows)
        ]
    )


def pack_(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """See :func:`fastmeta.ops.pack_`."""
    flat.copy_(pack(tensors, flat.shape[0]))


def unpack_(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """See :func:`fastmeta.ops.unpack_`."""
    each = len(tensors) // flat.shape[0]
    for i, row in enumerate(flat):
        own = tensors[i * each : (i + 1) * each]
        for target, part in zip(own, row.split([t.numel() for t in own]), strict=True):
            target.copy_(part.view_as(target))
