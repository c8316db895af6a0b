"""Cases of the comparison: networks, tasks and inner loops, identical for all contenders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._common import case_file


@dataclass(frozen=True)
class Case:
    """A meta-gradient: mean over tasks of the query loss gradient, at the initial weights."""

    name: str
    network: str  # "mlp", "strided", "pooled", "resnet" or "transformer"
    tasks: int
    ways: int = 5
    shots: int = 1
    queries: int = 15
    channels: int = 1
    size: int = 28  # width and height in pixels, or number of tokens
    hidden: int = 64  # channels (in a ResNet, of the first block), or features per token
    depth: int = 4
    steps: int = 1
    order: int = 2
    lr: float = 0.01

    @property
    def title(self) -> str:
        """Network, tasks and inner loop."""
        return f"{self.name}, {self.steps} step{'s' * (self.steps > 1)}, order {self.order}"

    @property
    def loss(self) -> Any:
        """Loss function of outputs and targets."""
        return F.mse_loss if self.regression else F.cross_entropy

    @property
    def regression(self) -> bool:
        """Whether the loss is the squared error instead of cross-entropy."""
        return self.network == "mlp"


NETWORKS = [
    Case("sine MLP 1-40-40-1, 4 tasks", "mlp", 4, shots=10, queries=10),
    Case("sine MLP 1-40-40-1, 32 tasks", "mlp", 32, shots=10, queries=10),
    Case("Omniglot Conv4-64, 5-way 1-shot, 4 tasks", "strided", 4),
    Case("Omniglot Conv4-64, 5-way 1-shot, 32 tasks", "strided", 32),
    Case("Omniglot Conv4-64, 20-way 1-shot, 4 tasks", "strided", 4, ways=20, queries=5),
    Case("Omniglot Conv4-64 pooled, 5-way 1-shot, 4 tasks", "pooled", 4),
    Case("Omniglot Conv4-64 pooled, 20-way 1-shot, 4 tasks", "pooled", 4, ways=20, queries=5),
    Case(
        "mini-ImageNet Conv4-32, 5-way 1-shot, 4 tasks", "pooled", 4, channels=3, size=84, hidden=32
    ),
    Case(
        "mini-ImageNet Conv4-32, 5-way 5-shot, 4 tasks",
        "pooled",
        4,
        shots=5,
        channels=3,
        size=84,
        hidden=32,
    ),
    Case(
        "ResNet-12, 32x32 images, 5-way 1-shot, 2 tasks",
        "resnet",
        2,
        queries=5,
        channels=3,
        size=32,
    ),
    Case(
        "12-layer transformer, 16 tokens of 64, 5-way 1-shot, 4 tasks",
        "transformer",
        4,
        queries=5,
        size=16,
        depth=12,
    ),
]
STEPS = {"mlp": (5,), "resnet": (1,)}
CASES = [
    replace(case, steps=steps, order=order)
    for case in NETWORKS
    for order in (1, 2)
    for steps in STEPS.get(case.network, (1, 5))
]


def build(case: Case) -> nn.Module:
    """The network of a case, in plain torch."""
    if case.network == "resnet":
        return ResNet12(case)
    if case.network == "transformer":
        return Transformer(case)
    if case.network == "mlp":
        hidden = (nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU())
        return nn.Sequential(*hidden, nn.Linear(40, 1))
    layers: list[nn.Module] = []
    channels, size = case.channels, case.size
    for _ in range(4):
        stride = 2 if case.network == "strided" else 1
        layers += [
            nn.Conv2d(channels, case.hidden, 3, stride=stride, padding=1),
            nn.BatchNorm2d(case.hidden, track_running_stats=False),
            nn.ReLU(),
        ]
        if case.network == "pooled":
            layers.append(nn.MaxPool2d(2))
        channels = case.hidden
        size = (size + 1) // 2 if stride == 2 else size // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, case.ways))


class Residual(nn.Module):
    """Three convolutions with a 1x1 convolution as shortcut, then pooling."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k in range(3):
            layers += [
                nn.Conv2d(width if k else channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width, track_running_stats=False),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width, track_running_stats=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, ``(n, ...)``."""
        return F.max_pool2d(F.relu(self.body(x) + self.shortcut(x)), 2)


class ResNet12(nn.Module):
    """ResNet-12 for few-shot learning (Mishra et al. 2018): widths 1, 2.5, 5, 10 x ``hidden``."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        widths = [case.channels, *(int(case.hidden * k) for k in (1, 2.5, 5, 10))]
        self.blocks = nn.Sequential(*map(Residual, widths, widths[1:]))
        self.head = nn.Linear(widths[-1], case.ways)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, ``(n, ...)``."""
        return self.head(self.blocks(x).mean((2, 3)))


class Transformer(nn.Module):
    """Encoder layers without dropout, mean over tokens, linear head."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(case.hidden, 4, 4 * case.hidden, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, case.depth, enable_nested_tensor=False)
        self.head = nn.Linear(case.hidden, case.ways)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, ``(n, ...)``."""
        return self.head(self.encoder(x).mean(1))


def batch(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``support_x, support_y, query_x, query_y``, each with a leading task dimension."""

    def draw(per_class: int) -> tuple[Tensor, Tensor]:
        if case.regression:
            x = 10 * torch.rand(case.tasks, per_class, 1) - 5
            return x, torch.sin(x + phase)
        y = torch.arange(case.ways).repeat(per_class).expand(case.tasks, -1).contiguous()
        if case.network == "transformer":
            return torch.randn(*y.shape, case.size, case.hidden), y
        return torch.rand(*y.shape, case.channels, case.size, case.size), y

    phase = 3 * torch.rand(case.tasks, 1, 1)
    return *draw(case.shots), *draw(case.queries)


def save(case: Case, path: Path) -> None:
    """Writes case, initial weights and tasks, for the processes of the contenders."""
    torch.manual_seed(0)
    case_file.save(path, case, build(case), batch(case))
