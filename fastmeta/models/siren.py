"""Coordinate network with sines as activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from typing_extensions import override

from fastmeta._checks import check_integer, check_positive


class Sine(nn.Module):
    """`sin(w0 * x)`.

    Args:
        w0: frequency.
    """

    def __init__(self, w0: float = 30.0) -> None:
        super().__init__()
        self.w0 = w0

    def forward(self, x: Tensor) -> Tensor:
        """The sines, of the shape of `x`."""
        return (self.w0 * x).sin()

    @override
    def extra_repr(self) -> str:
        return f"w0={self.w0}"


class SIREN(nn.Module):
    """Linear layers with sines in between: a signal as a function of its coordinates.

    Sitzmann et al. 2020, "Implicit Neural Representations with Periodic Activation Functions".
    Weights and biases begin uniform, in `[-1 / n, 1 / n]` in the first layer and in
    `[-sqrt(6 / n) / w0, sqrt(6 / n) / w0]` in the others, with `n` inputs of the layer. The
    defaults are those of GradNCP (Tack et al. 2023) for images: five layers, and outputs that
    begin around 0.5, which their code adds to them and which here is in the last bias.

    Args:
        in_features: number of coordinates.
        out_features: number of channels of the signal.
        hidden: widths of the hidden layers.
        w0: frequency of the sines.

    Input `(n, in_features)`, coordinates in `[-1, 1]`; output `(n, out_features)`.

    Attributes:
        layers: the linear layers and the sines.

    Raises:
        ValueError: if a width is below 1 or `w0` is not positive.
    """

    def __init__(
        self,
        in_features: int = 2,
        out_features: int = 1,
        hidden: Sequence[int] = (256, 256, 256, 256),
        w0: float = 30.0,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden, out_features]
        for width in widths:
            check_integer("the width of every layer", width, 1)
        check_positive("w0", w0)
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            linear = nn.Linear(inputs, outputs)
            bound = math.sqrt(6 / inputs) / w0 if i else 1 / inputs
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.uniform_(linear.bias, -bound, bound)
            layers += [linear, Sine(w0)]
        nn.init.uniform_(linear.bias, 0.5 - bound, 0.5 + bound)
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """The signal `(n, out_features)` at the coordinates."""
        output: Tensor = self.layers(x)
        return output
