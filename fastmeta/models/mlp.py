"""The small network of the sine task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with an activation between them.

    Finn et al. 2017 regress sines with two hidden layers of 40 and ReLU, the defaults.

    Args:
        in_features: size of an input.
        out_features: size of an output.
        hidden: widths of the hidden layers.
        activation: makes the activation of each hidden layer.

    Input ``(n, *)`` with ``in_features`` numbers each, output ``(n, out_features)``.

    Attributes:
        layers: the flattening, the linear layers and the activations.

    Raises:
        ValueError: if a width is below 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (40, 40),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden, out_features]
        if min(widths) < 1:
            raise ValueError(f"every layer must be at least 1 wide; got the widths {widths}.")
        layers: list[nn.Module] = [nn.Flatten()]
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow), activation()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(n, out_features)``."""
        output: Tensor = self.layers(x)
        return output
