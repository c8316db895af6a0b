"""Networks with blocks and convolutions that can be fused."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.helpers.problems import WAYS


def network(**norm: object) -> nn.Module:
    """Two blocks, the first with pooling, on the 4x4 images of ``tasks``."""
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, **norm), nn.ReLU(), nn.MaxPool2d(2)
        ),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6, **norm),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(24, WAYS),
    ).double()


def images(n: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 1, 4, 4, dtype=dtype)
