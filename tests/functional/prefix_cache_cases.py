"""Networks with a frozen prefix, and learners that adapt only their last layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import MetaLearner
from fastmeta.adaptation import SGD, LayerPattern
from fastmeta.aggregation import Mean
from fastmeta.metagrad import FirstOrder, MetaGradient
from fastmeta.models import MLP, Conv4
from tests.helpers.problems import WAYS

STEPS = 3


class Residual(nn.Module):
    """A user-defined block of two chains."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs, track_running_stats=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 5, padding=2),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.GroupNorm(1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.path(x) + self.shortcut(x), 0.1)


def conv(inputs: int, outputs: int, statistics: bool = False) -> list[nn.Module]:
    norm = nn.BatchNorm2d(outputs, track_running_stats=statistics)
    return [nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.ReLU(inplace=True)]


def flat(statistics: bool = False, *between: nn.Module) -> nn.Module:
    """One chain of convolutions, with other layers in between."""
    layers = [*conv(1, 4, statistics), nn.MaxPool2d(2), *between, *conv(4, 4, statistics)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, WAYS))


def shared() -> nn.Module:
    """One activation module used twice, and a weight shared by two layers."""
    act, first = nn.Tanh(), nn.Linear(16, 16)
    second = nn.Linear(16, 16)
    second.weight = first.weight
    return nn.Sequential(nn.Flatten(), first, act, second, act, nn.Linear(16, WAYS))


def twice() -> nn.Module:
    """A chain that contains another one twice."""
    part = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    return nn.Sequential(nn.Flatten(), part, part, nn.Linear(16, WAYS))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Conv4": lambda: Conv4(1, 4, WAYS, hidden=5),
    "Conv4 strided": lambda: Conv4(1, 4, WAYS, hidden=5, downsample="stride"),
    "Conv4 with statistics": lambda: Conv4(1, 4, WAYS, hidden=5, batch_norm_stats=True),
    "MLP": lambda: MLP(16, WAYS, (7, 6, 5)),
    "one chain": flat,
    "nested": lambda: nn.Sequential(nn.Sequential(flat()[:4], flat()[4:-2]), *flat()[-2:]),
    "residual": lambda: nn.Sequential(
        Residual(1, 4), Residual(4, 4), nn.Flatten(), nn.Linear(64, WAYS)
    ),
    "shared": shared,
    "twice": twice,
    "dropout": lambda: flat(False, nn.Dropout(0.3)),
    "in place": lambda: flat(False, nn.Dropout2d(0.3, inplace=True)),
}


def learner(
    module: nn.Module, pattern: str, metagrad: MetaGradient | None = None, **options: Any
) -> MetaLearner:
    inner = options.pop("inner", SGD(0.1, STEPS))
    return MetaLearner(
        module,
        F.cross_entropy,
        adaptation=LayerPattern(inner, pattern),
        metagrad=metagrad or FirstOrder(),
        aggregation=Mean(),
        **{"engine": "loop", **options},
    )
