from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmeta.models import MLP, Conv4, conv_co_learner


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_paper() -> None:
    """From its code: 203,210 in training, 195,205 of the co-learner at test; 121,093 of MAML."""
    model = Conv4(3, 84, 5, pool_last=False)
    head = conv_co_learner(*model.map_size, 5)
    assert (count(model.features), count(model.head), count(head)) == (113_088, 8_005, 82_117)
    assert count(model) + count(head) == 203_210
    assert count(model.features) + count(head) == 195_205
    assert head(model.features(torch.randn(2, 3, 84, 84))).shape == (2, 5)
    assert [type(layer) for layer in head] == [
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU) * 2,
        *(nn.MaxPool2d, nn.Flatten, nn.Linear),
    ]
    sine = MLP(1, 1)
    assert count(MLP(sine.layers[-1].in_features, 1, (40,))) == 40 * 40 + 40 + 40 + 1


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_small_maps(width: int) -> None:
    head = conv_co_learner(3, width, 5, hidden=4)
    assert head(torch.randn(6, 3, width, width)).shape == (6, 5)
    assert not list(head.buffers())
    assert list(conv_co_learner(3, width, 5, batch_norm_stats=True).buffers())


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1, 0)])
def test_sizes_must_be_positive(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be at least 1; got"):
        conv_co_learner(*sizes)
