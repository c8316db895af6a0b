"""Small modules and tasks for meta-learning tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import TaskBatch

WAYS = 3
# Adaptations without an inner loop, and the meta-gradients that run them.
CLOSED_FORM = ["kernel-head", "ntk", "ridge-head"]
OF_CLOSED_FORM = ["exact", "class-weights"]


class Tied(nn.Module):
    """One matrix used twice, as in an autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 6, bias=False)
        self.decode = nn.Linear(6, 6, bias=False)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(6, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.decode(torch.tanh(self.encode(x.flatten(1)[:, :6])))))


class Unused(nn.Module):
    """One parameter that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, WAYS)
        self.idle = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, WAYS))


class Noisy(nn.Module):
    """Dropout of both kinds: a repeated step must use the same masks."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Unflatten(-1, (4, 4)), nn.Conv2d(1, 4, 3), nn.Dropout2d(0.4), nn.Tanh(), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Dropout(0.4), nn.Linear(16, WAYS))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x.flatten(2)))


class Drifting(nn.Module):
    """Reads a buffer, then changes it, like batch renormalization."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.register_buffer("level", torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x.flatten(1) * self.level)
        with torch.no_grad():
            self.level.mul_(0.8).add_(0.2 * x.flatten(1).std(0))
        return y


def convolution(running_statistics: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4, track_running_stats=running_statistics),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(64, WAYS),
    )


def frozen() -> nn.Module:
    module = mlp()
    module[1].weight.requires_grad_(False)
    return module


MODULES: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "batch norm": lambda: convolution(False),
    "running batch norm": lambda: convolution(True),
    "tied": Tied,
    "frozen": frozen,
    "unused": Unused,
}


def tasks(count: int = 3, dtype: torch.dtype = torch.float64) -> TaskBatch:
    """Classification of noisy copies of one image per class."""
    centres = torch.randn(count, WAYS, 1, 4, 4, dtype=dtype)

    def draw(shots: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(WAYS).repeat(shots).expand(count, -1)
        x = torch.stack([c[labels] for c, labels in zip(centres, y, strict=True)])
        return x + 0.5 * torch.randn_like(x), y.contiguous()

    return TaskBatch(*draw(2), *draw(4), ids=torch.arange(count * WAYS).view(count, WAYS))


loss = F.cross_entropy
