"""Accumulation dtypes."""

from __future__ import annotations

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64; float32 for float32, float16 and bfloat16."""
    return torch.float64 if dtype == torch.float64 else torch.float32
