"""Warp layers, which begin as the identity."""

from __future__ import annotations

from torch import nn


def warp_linear(width: int) -> nn.Linear:
    """A linear warp layer, which begins as the identity.

    Flennerhag, Rusu, Pascanu, Visin, Yin, Hadsell 2020, "Meta-Learning with Warped Gradient
    Descent" (arXiv 1909.00025): the inner loop does not adapt warp layers, the outer loop trains
    them. The identity start is that of `W = I`; no random numbers are drawn.

    Adaptation `"warpgrad"` knows warp layers by the names of their parameters, which contain
    `warp`: assign the layer to an attribute such as `warp1` of your module, or
    `add_module("warp", ...)` it to an `nn.Sequential`.

    Args:
        width: of its inputs and outputs.
    """
    layer = nn.utils.skip_init(nn.Linear, width, width)
    assert isinstance(layer, nn.Linear)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def warp_conv(channels: int) -> nn.Conv2d:
    """A 3x3 convolution as a warp layer, otherwise as [`warp_linear`][fastmeta.models.warp_linear].

    Without activation or normalisation, as in the authors' networks for Omniglot.

    Args:
        channels: of its inputs and outputs, feature maps whose size does not change.
    """
    layer = nn.utils.skip_init(nn.Conv2d, channels, channels, 3, padding=1)
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    nn.init.dirac_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
