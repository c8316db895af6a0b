"""Inputs of the BatchNorm-ReLU-pool block whose masks do not depend on rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def norm_inputs(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, eps: float = 1e-3
) -> list[Tensor]:
    """``x``, ``weight`` and ``bias``: all elements of ``x`` are apart, and no output is near zero.

    With random inputs, an output is within rounding of zero, or of another in its pooling window,
    once in a few thousand; float32 may then take the other side.
    """
    channels = shape[1]
    x = torch.randperm(torch.Size(shape).numel()).view(shape).double()
    x = 4 * (x / x.numel() - 0.5) + torch.randn(channels, 1, 1)
    x = x.to(dtype).double()
    weight = (0.5 + torch.rand(channels).double()) * (1 - 2 * torch.randint(0, 2, (channels,)))
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    values = x.transpose(0, 1).flatten(1).sort().values
    k = values.shape[1] // 3
    threshold = values[:, k : k + 2].mean(1)
    if values.shape[1] == 1:
        threshold = threshold + 1
    bias = -weight * (threshold - mean) / (var + eps).sqrt()
    return [t.to(dtype) for t in (x, weight, bias)]


def grouped_norm_inputs(
    groups: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, eps: float = 1e-3
) -> list[Tensor]:
    """The same for groups of images of this shape: ``(G * N, C, H, W)`` and ``(G, C)``."""
    x, weight, bias = zip(*(norm_inputs(shape, dtype, eps) for _ in range(groups)), strict=True)
    return [torch.cat(x), torch.stack(weight), torch.stack(bias)]
