from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmeta.models import Conv4


@pytest.mark.parametrize(
    ("downsample", "size", "features"),
    [
        ("pool", 1, 1),
        ("pool", 8, 1),
        ("pool", 15, 1),
        ("pool", 16, 1),
        ("pool", 28, 1),
        ("pool", 84, 25),
        ("stride", 1, 1),
        ("stride", 8, 1),
        ("stride", 17, 4),
        ("stride", 28, 4),
        ("stride", 84, 36),
    ],
)
def test_shapes(downsample: str, size: int, features: int) -> None:
    model = Conv4(3, size, ways=5, hidden=4, downsample=downsample)
    assert model(torch.randn(2, 3, size, size)).shape == (2, 5)
    assert model.head.in_features == 4 * features


def test_blocks_match_the_papers() -> None:
    pooled, strided = Conv4(1, 28, 5), Conv4(1, 28, 5, downsample="stride")
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    assert [[type(layer) for layer in block] for block in pooled.features[:4]] == [kinds] * 4
    assert [[type(layer) for layer in block] for block in strided.features[:4]] == [kinds[:3]] * 4
    assert [block[0].stride for block in strided.features[:4]] == [(2, 2)] * 4
    # 3x3 kernels, biases, BatchNorm scales and shifts, head of 64 features.
    conv = (9 * 64 + 64) + 3 * (9 * 64 * 64 + 64)
    assert sum(p.numel() for p in pooled.parameters()) == conv + 4 * 128 + 64 * 5 + 5


def test_small_images_are_pooled_as_far_as_possible() -> None:
    model = Conv4(1, 8, 5)
    assert [any(isinstance(m, nn.MaxPool2d) for m in block) for block in model.features[:4]] == [
        True,
        True,
        True,
        False,
    ]


def test_batch_statistics_by_default() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 1, 8, 8)
    transductive, inductive = Conv4(1, 8, 3), Conv4(1, 8, 3, batch_norm_stats=True)
    assert not list(transductive.buffers())
    assert list(inductive.buffers())
    for model, same in ((transductive, False), (inductive, True)):
        model.eval()
        with torch.no_grad():
            assert torch.allclose(model(x)[:3], model(x[:3]), atol=1e-6) == same


@pytest.mark.parametrize(
    "name", ["in_channels", "image_size", "ways", "hidden", "batch_norm_steps"]
)
def test_sizes_must_be_positive(name: str) -> None:
    sizes = {"in_channels": 1, "image_size": 8, "ways": 5, "hidden": 4, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        Conv4(**sizes)


def test_unknown_downsampling() -> None:
    with pytest.raises(ValueError, match="one of pool, stride; got 'mean'"):
        Conv4(1, 8, 5, downsample="mean")


@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("size", [1, 8, 17, 28, 84])
def test_position_of_the_last_pooling_changes_nothing(size: int, downsample: str) -> None:
    x, models = torch.randn(4, 1, size, size), []
    for pool_last in (True, False):
        torch.manual_seed(0)
        models.append(Conv4(1, size, 5, 3, downsample, pool_last=pool_last))
    assert torch.equal(*(model(x) for model in models))
    usual, mapped = models
    assert usual.features(x).shape[1] == usual.map_size[0] * usual.map_size[1] ** 2
    assert mapped.features(x).shape[1:] == (*mapped.map_size, mapped.map_size[1])
    pooled = downsample == "pool" and size >= 16
    assert isinstance(mapped.head[0], nn.MaxPool2d) == pooled
