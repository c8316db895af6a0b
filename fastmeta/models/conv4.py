"""The field's standard convolutional backbone."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Downsample = Literal["pool", "stride"]


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, BatchNorm and ReLU, then a linear classifier.

    Vinyals et al. 2016, "Matching Networks for One Shot Learning"; Finn et al. 2017 use 64 filters
    and strided convolutions on Omniglot, 32 filters and max-pooling on mini-ImageNet. Blocks stop
    halving the map once it is one pixel wide.

    Args:
        in_channels: channels of the images.
        image_size: their height and width.
        ways: outputs, one a class.
        hidden: filters a block.
        downsample: ``"pool"`` (2x2 max-pooling after each block) or ``"stride"``.
        batch_norm_stats: whether BatchNorm keeps running statistics for ``eval()``; without them
            it uses the batch's own always, as MAML does.

    Input ``(n, in_channels, image_size, image_size)``, output ``(n, ways)``.

    Attributes:
        features: the four blocks and a flattening.
        head: the linear classifier.

    Raises:
        ValueError: if ``downsample`` is unknown or a size is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        ways: int,
        hidden: int = 64,
        downsample: Downsample = "pool",
        batch_norm_stats: bool = False,
    ) -> None:
        super().__init__()
        if downsample not in ("pool", "stride"):
            raise ValueError(f"downsample must be one of pool, stride; got {downsample!r}.")
        sizes = {"in_channels": in_channels, "image_size": image_size, "ways": ways}
        for name, value in {**sizes, "hidden": hidden}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}.")
        blocks: list[nn.Module] = []
        size, channels = image_size, in_channels
        for _ in range(4):
            halve = size >= 2
            strided = halve and downsample == "stride"
            pooled = halve and downsample == "pool"
            block: list[nn.Module] = [
                nn.Conv2d(channels, hidden, 3, stride=2 if strided else 1, padding=1),
                nn.BatchNorm2d(hidden, track_running_stats=batch_norm_stats),
                nn.ReLU(),
            ]
            blocks.append(nn.Sequential(*block, *([nn.MaxPool2d(2)] if pooled else [])))
            channels = hidden
            if halve:
                size = size // 2 if pooled else (size + 1) // 2
        self.features = nn.Sequential(*blocks, nn.Flatten())
        self.head = nn.Linear(hidden * size * size, ways)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``(n, ways)`` of images ``(n, in_channels, image_size, image_size)``."""
        scores: Tensor = self.head(self.features(x))
        return scores
