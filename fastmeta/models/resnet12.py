"""ResNet-12, the standard residual backbone of few-shot learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import leaky_relu

_SLOPE = 0.1


class ResNet12(nn.Module):
    """Four residual blocks of three convolutions, each with max-pooling, and a linear classifier.

    Oreshkin, Rodriguez, Lacoste 2018, "TADAM" use 64, 128, 256 and 512 filters; Lee et al. 2019,
    "Meta-Learning with Differentiable Convex Optimization" 64, 160, 320 and 640, and leaky ReLU of
    slope 0.1. Without DropBlock. Blocks stop pooling once the feature map is one pixel wide.

    Args:
        in_channels: channels of the images.
        image_size: their height and width.
        ways: outputs, one per class.
        hidden: filters of the four blocks.
        batch_norm_stats: as in [`Conv4`][fastmeta.models.Conv4].
        pool_last: whether `features` ends with the last pooling, the mean over pixels and a
            flattening. If not, `head` begins with them and `features` returns a feature map.
            Initial weights and outputs are the same.

    Input `(n, in_channels, image_size, image_size)`, output `(n, ways)`.

    Attributes:
        features: the blocks and pooling.
        head: the linear classifier.
        map_size: channels and width of the final feature map.

    Raises:
        ValueError: if a size is below 1 or `hidden` does not have four values.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        ways: int,
        hidden: Sequence[int] = (64, 128, 256, 512),
        batch_norm_stats: bool = False,
        pool_last: bool = True,
    ) -> None:
        super().__init__()
        if len(hidden) != 4:
            raise ValueError(f"hidden must give the filters of four blocks; got {list(hidden)}.")
        if min(in_channels, image_size, ways, *hidden) < 1:
            raise ValueError(
                "in_channels, image_size, ways and hidden must be at least 1; got "
                f"{in_channels}, {image_size}, {ways} and {list(hidden)}."
            )
        layers: list[nn.Module] = []
        size, channels = image_size, in_channels
        for filters in hidden:
            layers.append(ResidualBlock(channels, filters, track_running_stats=batch_norm_stats))
            channels, width, pooled = filters, size, size >= 2
            if pooled:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        end: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        classifier = nn.Linear(channels, ways)
        self.features: nn.Sequential
        self.head: nn.Module
        if pool_last:
            self.features, self.head = nn.Sequential(*layers, *end), classifier
            self.map_size = channels, size
        else:
            pool = [layers.pop()] if pooled else []
            self.features = nn.Sequential(*layers)
            self.head = nn.Sequential(*pool, *end, classifier)
            self.map_size = channels, width

    def forward(self, x: Tensor) -> Tensor:
        """Class scores `(n, ways)` of images `(n, in_channels, image_size, image_size)`."""
        scores: Tensor = self.head(self.features(x))
        return scores


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions with BatchNorm and leaky ReLU, and a 1x1 convolution as shortcut.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        **norm: options of `nn.BatchNorm2d`.

    Input `(n, inputs, height, width)`, output `(n, outputs, height, width)`.
    """

    def __init__(self, inputs: int, outputs: int, **norm: Any) -> None:
        super().__init__()
        path: list[nn.Module] = []
        for channels in (inputs, outputs, outputs):
            path += [
                nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs, **norm),
                nn.LeakyReLU(_SLOPE),
            ]
        self.path = nn.Sequential(*path[:-1])
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, **norm)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The feature map `(n, outputs, height, width)`."""
        return leaky_relu(self.path(x) + self.shortcut(x), _SLOPE)
