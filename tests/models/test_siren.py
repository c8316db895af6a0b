from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastmeta.models import SIREN


def test_is_sines_of_linear_layers() -> None:
    model = SIREN(2, 3, (7, 5), w0=4.0).double()
    first, second, last = (m for m in model.layers if isinstance(m, nn.Linear))
    x = 2 * torch.rand(11, 2, dtype=torch.float64) - 1
    hidden = torch.sin(4 * (x @ first.weight.mT + first.bias))
    hidden = torch.sin(4 * (hidden @ second.weight.mT + second.bias))
    torch.testing.assert_close(model(x), hidden @ last.weight.mT + last.bias)


def test_begins_as_published() -> None:
    model = SIREN(2, 3, (400, 300), w0=20.0)
    linear = [m for m in model.layers if isinstance(m, nn.Linear)]
    for i, (layer, inputs) in enumerate(zip(linear, (2, 400, 300), strict=True)):
        bound = math.sqrt(6 / inputs) / 20 if i else 1 / inputs
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        centre = 0.5 if i == 2 else 0.0  # of the outputs
        assert (layer.bias - centre).abs().max() <= bound * (1 + 1e-5)
    # Sines of hidden layers are about as large in every layer (theorem 1.8 of the paper).
    x = 2 * torch.rand(2000, 2) - 1
    spread = [model.layers[: 2 * k](x).std().item() for k in (1, 2)]
    for value in spread:
        assert abs(value - math.sqrt(0.5)) < 0.1


def test_refuses_sizes_and_frequencies() -> None:
    with pytest.raises(ValueError, match="width of every layer"):
        SIREN(2, 1, (0,))
    with pytest.raises(ValueError, match="w0 must be a positive"):
        SIREN(w0=0)
