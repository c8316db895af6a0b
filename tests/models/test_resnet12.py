from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.models import ResNet12


@pytest.mark.parametrize("pool_last", [True, False])
@pytest.mark.parametrize(
    ("size", "width"), [(1, 1), (2, 1), (8, 1), (16, 2), (28, 3), (32, 4), (84, 10)]
)
def test_shapes(size: int, width: int, pool_last: bool) -> None:
    model = ResNet12(3, size, 5, (2, 3, 4, 6), pool_last=pool_last)
    x = torch.randn(2, 3, size, size)
    assert model(x).shape == (2, 5)
    if pool_last:
        assert model.features(x).shape == (2, 6)
        assert model.map_size == (6, width // 2 or 1)
    else:
        assert model.features(x).shape == (2, 6, width, width)
        assert model.map_size == (6, width)


@pytest.mark.parametrize(
    ("filters", "millions"), [((64, 128, 256, 512), 8.0), ((64, 160, 320, 640), 12.4)]
)
def test_parameters(filters: tuple[int, ...], millions: float) -> None:
    with torch.device("meta"):
        model = ResNet12(3, 84, 5, filters)
    expected, inputs = 5 * filters[-1] + 5, 3
    for f in filters:  # kernels of the path and the shortcut, and four BatchNorms
        expected += 9 * f * (inputs + 2 * f) + f * inputs + 4 * 2 * f
        inputs = f
    count = sum(p.numel() for p in model.parameters())
    assert count == expected
    assert round(count / 1e6, 1) == millions


def test_a_block_against_plain_torch() -> None:
    model = ResNet12(1, 8, 5, (3, 4, 5, 6)).double()
    block, x = model.features[0], torch.randn(4, 1, 8, 8, dtype=torch.float64)
    names = ["conv", "norm", "slope"] * 3
    path = dict(zip(zip(names, (0, 0, 0, 1, 1, 1, 2, 2), strict=False), block.path, strict=True))

    def normal(y: torch.Tensor) -> torch.Tensor:
        return (y - y.mean((0, 2, 3), True)) / (y.var((0, 2, 3), False, True) + 1e-5).sqrt()

    y = x
    for i in range(3):
        y = normal(F.conv2d(y, path["conv", i].weight, padding=1))
        y = torch.where(y > 0, y, 0.1 * y) if i < 2 else y
    y = y + normal(torch.einsum("oi,nihw->nohw", block.shortcut[0].weight[:, :, 0, 0], x))
    torch.testing.assert_close(block(x), torch.where(y > 0, y, 0.1 * y))


def test_position_of_the_last_pooling_changes_nothing() -> None:
    models = []
    for pool_last in (True, False):
        torch.manual_seed(0)
        models.append(ResNet12(1, 16, 3, (2, 3, 4, 5), pool_last=pool_last))
    x = torch.randn(4, 1, 16, 16)
    assert torch.equal(*(model(x) for model in models))
    assert isinstance(models[1].head[0], nn.MaxPool2d)


def test_invalid_sizes() -> None:
    with pytest.raises(ValueError, match=r"filters of four blocks; got \[64\]"):
        ResNet12(3, 84, 5, (64,))
    for sizes in ((0, 8, 5), (1, 0, 5), (1, 8, 0)):
        with pytest.raises(ValueError, match="must be at least 1; got"):
            ResNet12(*sizes)
    with pytest.raises(ValueError, match=r"must be at least 1; got 1, 8, 5 and \[1, 1, 0, 1\]"):
        ResNet12(1, 8, 5, (1, 1, 0, 1))
