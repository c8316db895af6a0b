"""Convolutional and fully connected networks for few-shot benchmarks.

Parameter names, their order and, for the same torch and NumPy seeds, initial values are those of
learn2learn 0.2.0. Checkpoints of either library load in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import erfc, sqrt
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fastmeta.compat.learn2learn.nn import Flatten, Lambda

__all__ = [
    "CNN4",
    "CNN4Backbone",
    "ConvBase",
    "ConvBlock",
    "MiniImagenetCNN",
    "OmniglotCNN",
    "OmniglotFC",
    "fc_init_",
    "maml_init_",
]

_Module = TypeVar("_Module", bound=nn.Module)


def fc_init_(module: _Module) -> _Module:
    """Truncated normal weights (standard deviation 0.01, within 2 deviations), zero biases.

    Sampled with NumPy's global generator, as SciPy does.
    """
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    if weight is not None:
        below = erfc(sqrt(2)) / 2  # the normal distribution function at -2
        share = below + (1 - 2 * below) * torch.from_numpy(np.random.uniform(size=weight.shape))
        weight.data.copy_(torch.special.ndtri(share) * 0.01)
    if bias is not None:
        nn.init.zeros_(bias)
    return module


def maml_init_(module: _Module) -> _Module:
    """Glorot uniform weights, zero biases."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    nn.init.xavier_uniform_(weight)
    nn.init.zeros_(bias)
    return module


class LinearBlock(nn.Module):
    """A linear layer, BatchNorm without running statistics, ReLU.

    Args:
        input_size: input features.
        output_size: output features.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.normalize = nn.BatchNorm1d(output_size, eps=1e-3, track_running_stats=False)
        self.linear = fc_init_(nn.Linear(input_size, output_size))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, input_size)` to `(n, output_size)`."""
        y: Tensor = self.relu(self.normalize(self.linear(x)))
        return y


class ConvBlock(nn.Module):
    """A convolution, BatchNorm with running statistics, ReLU, and max pooling or a stride.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: the kernel size of the convolution, which has padding 1.
        max_pool: whether to downsample by max pooling; otherwise by the stride.
        max_pool_factor: half the pooling width or stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        max_pool: bool = True,
        max_pool_factor: float = 1.0,
    ) -> None:
        super().__init__()
        width = int(2 * max_pool_factor)
        self.max_pool = nn.MaxPool2d(width) if max_pool else nn.Identity()
        self.normalize = nn.BatchNorm2d(out_channels)
        nn.init.uniform_(self.normalize.weight)
        self.relu = nn.ReLU()
        stride = 1 if max_pool else width
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=1)
        maml_init_(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, in_channels, h, w)` to `(n, out_channels, h', w')`."""
        y: Tensor = self.max_pool(self.relu(self.normalize(self.conv(x))))
        return y


class ConvBase(nn.Sequential):
    """A stack of 3x3 [`ConvBlock`][fastmeta.compat.learn2learn.vision.models.ConvBlock].

    Args:
        hidden: channels per block.
        channels: input channels.
        max_pool: whether to downsample by max pooling; otherwise by strides.
        layers: the number of blocks.
        max_pool_factor: half the pooling width or stride.
    """

    def __init__(
        self,
        hidden: int = 64,
        channels: int = 1,
        max_pool: bool = False,
        layers: int = 4,
        max_pool_factor: float = 1.0,
    ) -> None:
        sizes = [channels, *[hidden] * layers]
        super().__init__(
            *(
                ConvBlock(before, after, (3, 3), max_pool, max_pool_factor)
                for before, after in pairwise(sizes)
            )
        )


class CNN4Backbone(ConvBase):
    """[`ConvBase`][fastmeta.compat.learn2learn.vision.models.ConvBase] with flattened outputs.

    Args:
        hidden_size: channels per block.
        layers: the number of blocks.
        channels: input channels.
        max_pool: whether to downsample by max pooling; otherwise by strides.
        max_pool_factor: half the pooling width or stride; `4 // layers` by default.
    """

    def __init__(
        self,
        hidden_size: int = 64,
        layers: int = 4,
        channels: int = 3,
        max_pool: bool = True,
        max_pool_factor: float | None = None,
    ) -> None:
        factor = 4 // layers if max_pool_factor is None else max_pool_factor
        super().__init__(hidden_size, channels, max_pool, layers, factor)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, channels, h, w)` to `(n, features)`."""
        for block in self:
            x = block(x)
        return x.flatten(1)


class _Classifier(nn.Module):
    features: nn.Module
    classifier: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, output_size)`."""
        scores: Tensor = self.classifier(self.features(x))
        return scores


class OmniglotFC(_Classifier):
    """The fully connected network for Omniglot.

    Args:
        input_size: pixels per image.
        output_size: the number of classes.
        sizes: the sizes of the hidden layers; 256, 128, 64 and 64 by default.
    """

    def __init__(
        self, input_size: int, output_size: int, sizes: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        widths = [input_size, *((256, 128, 64, 64) if sizes is None else sizes)]
        blocks = [LinearBlock(a, b) for a, b in pairwise(widths)]
        self.features = nn.Sequential(Flatten(), nn.Sequential(*blocks))
        self.classifier = fc_init_(nn.Linear(widths[-1], output_size))
        self.input_size = input_size


class OmniglotCNN(_Classifier):
    """The strided network for 28x28 Omniglot images (Finn et al. 2017).

    Args:
        output_size: the number of classes.
        hidden_size: channels per block.
        layers: the number of blocks.
    """

    def __init__(self, output_size: int = 5, hidden_size: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.base = ConvBase(hidden_size, layers=layers)
        self.features = nn.Sequential(
            Lambda(lambda x: x.view(-1, 1, 28, 28)),
            self.base,
            Lambda(lambda x: x.mean(dim=[2, 3])),
            Flatten(),
        )
        self.classifier = nn.Linear(hidden_size, output_size)
        nn.init.normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)


class CNN4(_Classifier):
    """The max-pooled network for 84x84 mini-ImageNet images (Ravi, Larochelle 2017).

    Args:
        output_size: the number of classes.
        hidden_size: channels per block.
        layers: the number of blocks.
        channels: input channels.
        max_pool: whether to downsample by max pooling; otherwise by strides.
        embedding_size: input features of the classifier; `25 * hidden_size` by default.
    """

    def __init__(
        self,
        output_size: int,
        hidden_size: int = 64,
        layers: int = 4,
        channels: int = 3,
        max_pool: bool = True,
        embedding_size: int | None = None,
    ) -> None:
        super().__init__()
        size = 25 * hidden_size if embedding_size is None else embedding_size
        self.features = CNN4Backbone(hidden_size, layers, channels, max_pool)
        self.classifier = maml_init_(nn.Linear(size, output_size))
        self.hidden_size = hidden_size


MiniImagenetCNN = CNN4
