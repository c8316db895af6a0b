"""What is compared: networks, tasks and inner loops, the same numbers for every contender."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A meta-gradient: the mean over tasks of the query loss's gradient in the initial weights."""

    name: str
    network: str  # "mlp", "strided" or "pooled"
    tasks: int
    ways: int = 5
    shots: int = 1
    queries: int = 15
    channels: int = 1
    size: int = 28
    hidden: int = 64
    steps: int = 1
    order: int = 2
    lr: float = 0.01

    @property
    def title(self) -> str:
        """Network, tasks and inner loop."""
        return f"{self.name}, {self.steps} step{'s' * (self.steps > 1)}, order {self.order}"

    @property
    def regression(self) -> bool:
        """Whether the loss is the squared error, not cross-entropy."""
        return self.network == "mlp"


NETWORKS = [
    Case("sine MLP 1-40-40-1, 4 tasks", "mlp", 4, shots=10, queries=10),
    Case("sine MLP 1-40-40-1, 32 tasks", "mlp", 32, shots=10, queries=10),
    Case("Omniglot Conv4-64, 5-way 1-shot, 4 tasks", "strided", 4),
    Case("Omniglot Conv4-64, 20-way 1-shot, 4 tasks", "strided", 4, ways=20, queries=5),
    Case("Omniglot Conv4-64 pooled, 5-way 1-shot, 4 tasks", "pooled", 4),
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
]
CASES = [
    replace(case, steps=steps, order=order)
    for case in NETWORKS
    for order in (1, 2)
    for steps in ((5,) if case.network == "mlp" else (1, 5))
]


def build(case: Case) -> nn.Sequential:
    """The network, in plain torch."""
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


def batch(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``support_x, support_y, query_x, query_y``, each with the tasks first."""

    def draw(each: int) -> tuple[Tensor, Tensor]:
        if case.regression:
            x = 10 * torch.rand(case.tasks, each, 1) - 5
            return x, torch.sin(x + phase)
        y = torch.arange(case.ways).repeat(each).expand(case.tasks, -1).contiguous()
        return torch.rand(case.tasks, y.shape[1], case.channels, case.size, case.size), y

    phase = 3 * torch.rand(case.tasks, 1, 1)
    return *draw(case.shots), *draw(case.queries)


def save(case: Case, path: Path) -> None:
    """Case, initial weights and tasks, for the processes of the contenders."""
    torch.manual_seed(0)
    content = {"case": asdict(case), "state": build(case).state_dict(), "batch": batch(case)}
    torch.save(content, path)


def load(path: Path) -> tuple[Case, nn.Sequential, Any]:
    """The case of a file, its network with the initial weights, and its tasks."""
    content = torch.load(path)
    case = Case(**content["case"])
    module = build(case)
    module.load_state_dict(content["state"])
    return case, module, content["batch"]
