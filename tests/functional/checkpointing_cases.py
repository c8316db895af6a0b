"""Networks for activation checkpointing and autocast, and the first-order learners."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastmeta import FOMAML, GSL, Reptile
from tests.helpers.problems import WAYS

FIRST_ORDER = {"fomaml": FOMAML, "gsl": GSL, "reptile": Reptile}


class Residual(nn.Module):
    """A list of composite blocks, called with a keyword, with dropout and buffers of their own."""

    class Block(nn.Module):
        def __init__(self, spectral: bool) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.Tanh())
            self.out = nn.Linear(24, 16)
            if spectral:
                self.out = nn.utils.spectral_norm(self.out)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor, scale: float) -> Tensor:
            self.calls += 1
            y = nn.functional.dropout(self.net(x), 0.3, self.training)
            return x + scale * torch.tanh(self.calls) * self.out(y)

    def __init__(self, spectral: bool = True) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(spectral) for _ in range(3))
        self.blocks[2].net = self.blocks[0].net  # tied
        self.head = nn.Linear(16, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x)


def images(inplace: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=None)),
        nn.ReLU(inplace),
        nn.Flatten(),
        nn.Linear(24, WAYS),
    )


def tied() -> nn.Module:
    first = nn.Linear(16, 16)
    layers = [nn.Flatten(), first, nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, WAYS)]
    layers[3].weight = first.weight
    layers[3].bias.requires_grad_(False)
    return nn.Sequential(*layers)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return nn.Sequential(nn.Flatten(1, 2), encoder, nn.Flatten(), nn.Linear(16, WAYS))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "images": images,
    "residual": Residual,
    "tied": tied,
    "transformer": transformer,
}
