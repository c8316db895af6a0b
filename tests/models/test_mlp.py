from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmeta.models import MLP


def test_the_network_of_the_sine_experiment() -> None:
    model = MLP(1, 1)
    assert sum(p.numel() for p in model.parameters()) == 1 * 40 + 40 + 40 * 40 + 40 + 40 + 1
    assert model(torch.zeros(7, 1)).shape == (7, 1)
    assert sum(isinstance(m, nn.ReLU) for m in model.layers) == 2


def test_images_are_flattened() -> None:
    assert MLP(2 * 3 * 4, 5, hidden=(6,))(torch.zeros(7, 2, 3, 4)).shape == (7, 5)


def test_no_hidden_layer_is_a_linear_model() -> None:
    model = MLP(3, 2, hidden=())
    x = torch.randn(4, 3)
    torch.testing.assert_close(
        model(2 * x) - model(torch.zeros(4, 3)), 2 * (x @ model.layers[1].weight.T)
    )


def test_each_layer_has_its_own_activation() -> None:
    model = MLP(1, 1, hidden=(2, 2), activation=lambda: nn.PReLU(2))
    first, second = (m for m in model.layers if isinstance(m, nn.PReLU))
    assert first is not second


def test_widths_must_be_positive() -> None:
    with pytest.raises(
        ValueError, match=r"width of every layer must be at least 1; got \[1, 0, 1\]"
    ):
        MLP(1, 1, hidden=(0,))
