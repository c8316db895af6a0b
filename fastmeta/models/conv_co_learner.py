"""Co-learner head for images."""

from __future__ import annotations

from torch import nn


def conv_co_learner(
    channels: int, width: int, ways: int, hidden: int = 64, batch_norm_stats: bool = False
) -> nn.Sequential:
    """Two blocks of 3x3 convolution, BatchNorm and ReLU, 2x2 max-pooling and a linear classifier.

    On the feature map of [`Conv4`][fastmeta.models.Conv4] before pooling (`pool_last=False`) this
    is the co-learner in the code of Shin, Han, Kim 2024 (arXiv 2406.04639). For non-image features
    they use an [`MLP`][fastmeta.models.MLP] with one hidden layer: of 40 units for sine regression,
    of 16 for graph nodes.

    Args:
        channels: channels of the feature map.
        width: width of the feature map, which is square; a single pixel is not pooled.
        ways: outputs, one per class.
        hidden: filters.
        batch_norm_stats: as in [`Conv4`][fastmeta.models.Conv4].

    Returns:
        A head from feature maps `(n, channels, width, width)` to scores `(n, ways)`.

    Raises:
        ValueError: if a size is below 1.
    """
    if min(channels, width, ways, hidden) < 1:
        raise ValueError(
            "channels, width, ways and hidden must be at least 1; got "
            f"{channels}, {width}, {ways} and {hidden}."
        )
    layers: list[nn.Module] = []
    for inputs in (channels, hidden):
        layers += [
            nn.Conv2d(inputs, hidden, 3, padding=1),
            nn.BatchNorm2d(hidden, track_running_stats=batch_norm_stats),
            nn.ReLU(),
        ]
    if width >= 2:
        layers.append(nn.MaxPool2d(2))
        width //= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(hidden * width * width, ways))
