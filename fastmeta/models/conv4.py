"""Conv-4, the standard convolutional backbone of few-shot learning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from fastmeta.models.per_step_norm import PerStepBatchNorm2d
from fastmeta.models.warp import warp_conv

Downsample = Literal["pool", "stride"]


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, BatchNorm and ReLU, then a linear classifier.

    Vinyals et al. 2016, "Matching Networks for One Shot Learning"; Finn et al. 2017 use 64 filters
    and strided convolutions on Omniglot, 32 filters and max-pooling on mini-ImageNet. Blocks stop
    downsampling once the feature map is one pixel wide.

    Args:
        in_channels: channels of the images.
        image_size: their height and width.
        ways: outputs, one per class.
        hidden: filters per block.
        downsample: `"pool"` (2x2 max-pooling after each block) or `"stride"`.
        batch_norm_stats: whether BatchNorm tracks running statistics for `eval()`; without them
            it always uses batch statistics, as MAML does.
        pool_last: whether `features` ends with the last block's pooling and a flattening. If not,
            `head` begins with them and `features` returns a feature map, the input of the
            co-learner of Shin et al. 2024. Initial weights and outputs are the same.
        batch_norm_steps: BatchNorms per block; if more than one, one per inner step, see
            [`PerStepBatchNorm2d`][fastmeta.models.PerStepBatchNorm2d].
        warp: whether each block ends with a [warp layer][fastmeta.models.warp_conv], which moves
            with the pooling before it. Initial weights and outputs are the same.

    Input `(n, in_channels, image_size, image_size)`, output `(n, ways)`.

    Attributes:
        features: the four blocks and a flattening.
        head: the linear classifier.
        map_size: channels and width of the final feature map.

    Raises:
        ValueError: if `downsample` is unknown or a size is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        ways: int,
        hidden: int = 64,
        downsample: Downsample = "pool",
        batch_norm_stats: bool = False,
        pool_last: bool = True,
        batch_norm_steps: int = 1,
        warp: bool = False,
    ) -> None:
        super().__init__()
        if downsample not in ("pool", "stride"):
            raise ValueError(f"downsample must be one of pool, stride; got {downsample!r}.")
        sizes = {"in_channels": in_channels, "image_size": image_size, "ways": ways}
        counts = {"hidden": hidden, "batch_norm_steps": batch_norm_steps}
        for name, value in {**sizes, **counts}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}.")
        norm: Callable[..., nn.Module] = nn.BatchNorm2d
        if batch_norm_steps > 1:
            norm = partial(PerStepBatchNorm2d, steps=batch_norm_steps)
        blocks: list[nn.Sequential] = []
        size, channels = image_size, in_channels
        for _ in range(4):
            reducible = size >= 2
            strided = reducible and downsample == "stride"
            pooled = reducible and downsample == "pool"
            block: list[nn.Module] = [
                nn.Conv2d(channels, hidden, 3, stride=2 if strided else 1, padding=1),
                norm(hidden, track_running_stats=batch_norm_stats),
                nn.ReLU(),
            ]
            blocks.append(nn.Sequential(*block, *([nn.MaxPool2d(2)] if pooled else [])))
            if warp:
                blocks[-1].add_module("warp", warp_conv(hidden))
            channels = hidden
            width = (size + 1) // 2 if strided else size
            size = width // 2 if pooled else width
        classifier = nn.Linear(hidden * size * size, ways)
        self.features: nn.Sequential
        self.head: nn.Module
        if pool_last:
            self.features, self.head = nn.Sequential(*blocks, nn.Flatten()), classifier
            self.map_size = hidden, size
        else:
            moved = blocks[-1].pop(-1) if warp else None
            head = nn.Sequential(*([blocks[-1].pop(-1)] if pooled else []))
            if moved is not None:
                head.add_module("warp", moved)
            self.features = nn.Sequential(*blocks)
            self.head = head.extend([nn.Flatten(), classifier])
            self.map_size = hidden, width

    def forward(self, x: Tensor) -> Tensor:
        """Class scores `(n, ways)` of images `(n, in_channels, image_size, image_size)`."""
        scores: Tensor = self.head(self.features(x))
        return scores
