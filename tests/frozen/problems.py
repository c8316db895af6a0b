"""Networks, tasks and the record of a run."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from frozen.package import Conv4, TaskBatch
from torch import Tensor, nn

NETWORKS = ("mlp", "conv", "transformer")
WAYS, TASKS, META_STEPS, INNER_STEPS, INNER_LR = 3, 4, 3, 2, 0.05
SHAPES = {"mlp": (10,), "conv": (1, 12, 12), "transformer": (5, 8)}


class Encoder(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def network(name: str, dropout: float = 0.0, **options: Any) -> nn.Module:
    if name == "conv":
        return Conv4(1, 12, WAYS, hidden=4, **options)
    features = Encoder(dropout)
    if name == "mlp":
        features = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU())
    head = nn.Linear(8, WAYS)
    return nn.Sequential(OrderedDict([("features", features), ("head", head)]))


def tasks(name: str, seed: int, bad: int | None = None) -> TaskBatch:
    """Noisy copies of one example per class; the support set of task ``bad`` has a NaN."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(TASKS, WAYS, *SHAPES[name], generator=generator)
    sets = []
    for each in (2, 3):
        y = torch.arange(WAYS).repeat(TASKS, each)
        x = centres.repeat(1, each, *[1] * len(SHAPES[name]))
        sets += [x + 0.5 * torch.randn(x.shape, generator=generator), y]
    if bad is not None:
        sets[0][bad].flatten()[0] = float("nan")
    return TaskBatch(*sets)


class Trace:
    """A digest of the bytes of all tensors added, in order, and numbers that summarise them."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.numbers: list[float] = []

    def add(self, tensors: Iterable[Tensor | None], *summaries: Callable[[Tensor], Tensor]) -> None:
        known = []
        for tensor in tensors:
            if tensor is None:
                self.digest.update(b"none")
                continue
            flat = tensor.detach().contiguous().flatten()
            self.digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            self.digest.update(flat.view(torch.uint8).numpy().tobytes())
            known.append(flat.double())
        whole = torch.cat(known)
        self.numbers += [float(f"{summary(whole).item():.8g}") for summary in summaries]

    def to_list(self) -> list[Any]:
        return [self.digest.hexdigest(), *self.numbers]
