"""Packed gradients for the CUDA kernels, and tolerances of their results."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,  # one thread's sum of up to 16 terms is float32
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


# Tasks and columns around the tile, warp and block sizes, and zero; the last two have several
# chunks, the first of them with rows aligned to 16 bytes.
SIZES = [(0, 7), (3, 0), (1, 1), (2, 31), (3, 33), (33, 65), (5, 1021), (3, 5117), (2, 9000)]


def rows(dtype: torch.dtype, tasks: int, columns: int) -> Tensor:
    """Packed gradients as part of a wider buffer, with NaN between the rows."""
    whole = torch.full((tasks, columns + 3), float("nan"), dtype=dtype)
    whole[:, :columns] = torch.randn(tasks, columns, dtype=torch.float64).to(dtype)
    return whole[:, :columns]


def close(found: Tensor, exact: Tensor, size: Tensor) -> None:
    assert found.shape == exact.shape
    if not found.numel():
        return
    bound = TOLERANCE[found.dtype] * size.abs().clamp_min(size.abs().max() * 1e-2) + 1e-300
    assert ((found.double() - exact).abs() <= bound).all(), (found, exact)


def largest(t: Tensor) -> Tensor:
    """The largest magnitude, in every element."""
    return t.abs().max().expand_as(t) if t.numel() else t
