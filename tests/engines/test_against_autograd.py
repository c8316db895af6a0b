"""Every engine, meta-gradient, network and derivative order against plain autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact, FirstOrder, MetaGradient, Recursion
from fastmeta.models import MLP, Conv4
from tests.helpers.recorded_graphs import sequence_step_as_on_cuda
from tests.helpers.reference_loops import LR, reference_meta_gradients

WAYS = 5
TOLERANCE = 1e-9  # relative


class Residual(nn.Module):
    """A block like that of ResNet-12: three convolutions, a shortcut, leaky ReLU and pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        sizes = (inputs, outputs, outputs)
        layers: list[nn.Module] = []
        for size in sizes:
            layers += [nn.Conv2d(size, outputs, 3, padding=1), _norm(outputs), nn.ReLU()]
        self.path = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1), _norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.leaky_relu(self.path(x) + self.shortcut(x), 0.1), 2)


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def resnet() -> nn.Module:
    blocks = [Residual(a, b) for a, b in ((1, 4), (4, 6), (6, 6))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, WAYS))


class Transformer(nn.Module):
    """Two encoder layers over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.squeeze(1)).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "sine MLP": lambda: MLP(1, 1, (40, 40)),
    "MLP": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 9), nn.SiLU(), nn.Linear(9, WAYS)),
    "Conv4 strided": lambda: Conv4(1, 12, WAYS, hidden=6, downsample="stride"),
    "Conv4 pooled": lambda: Conv4(1, 12, WAYS, hidden=6),
    "ResNet": resnet,
    "transformer": Transformer,
}

ROUTES: dict[str, tuple[Callable[[], MetaGradient], dict[str, Any]]] = {
    "first order": (FirstOrder, {"engine": "loop", "fuse": False}),
    "first order, fused": (FirstOrder, {"engine": "loop"}),
    "first order, auto": (FirstOrder, {}),
    "exact": (Exact, {"engine": "loop", "fuse": False}),
    "exact, fused": (Exact, {"engine": "loop"}),
    "exact, auto": (Exact, {}),
    "first order, batched": (FirstOrder, {"engine": "batched", "fuse": False}),
    "first order, batched, fused": (FirstOrder, {"engine": "batched"}),
    "exact, batched": (Exact, {"engine": "batched", "fuse": False}),
    "exact, batched, fused": (Exact, {"engine": "batched"}),
    "recursion, batched": (Recursion, {"engine": "batched"}),
    "recursion, batched, no graph kept": (lambda: Recursion(graphs=0), {"engine": "batched"}),
    "recursion": (Recursion, {"fuse": False}),
    "recursion, fused": (Recursion, {"engine": "loop"}),
    "recursion, no graph kept": (lambda: Recursion(graphs=0), {"engine": "loop"}),
    "recursion, auto": (Recursion, {}),
    # The launches of the sequence engine for CUDA, on the CPU.
    "first order, as on CUDA": (FirstOrder, {}),
    "exact, as on CUDA": (Exact, {}),
    "recursion, as on CUDA": (Recursion, {}),
}


def batch_for(network: str) -> TaskBatch:
    def draw(each: int) -> tuple[Tensor, Tensor]:
        if network == "sine MLP":
            x = 4 * torch.rand(2, each, 1, dtype=torch.float64) - 2  # a wider range diverges
            return x, torch.sin(x)
        y = torch.arange(WAYS).repeat(each).expand(2, -1).contiguous()
        return torch.rand(2, WAYS * each, 1, 12, 12, dtype=torch.float64), y

    return TaskBatch(*draw(2), *draw(3))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("network", NETWORKS)
def test_all_engines_and_meta_gradients(
    network: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = NETWORKS[network]().double(), batch_for(network)
    loss = F.mse_loss if network == "sine MLP" else F.cross_entropy
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
        expected = {
            second: reference_meta_gradients(module, batch, steps, second, loss).mean(0)
            for second in (False, True)
        }
    assert (expected[True] - expected[False]).norm() > 1e-3 * expected[True].norm()
    for name, (make, options) in ROUTES.items():
        if "CUDA" in name:
            sequence_step_as_on_cuda(monkeypatch)
        learner = MetaLearner(
            module, loss, adaptation=SGD(LR, steps), metagrad=make(), aggregation=Mean(), **options
        )
        for _ in range(2 if "CUDA" in name and "Conv4" in network else 1):
            found, _ = learner.meta_gradient(batch)  # the second one is a replay
        reference = expected["first" not in name]
        assert (found - reference).norm() <= TOLERANCE * reference.norm(), name
