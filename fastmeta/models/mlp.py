"""Multi-layer perceptron."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from fastmeta.models.warp import warp_linear


class MLP(nn.Module):
    """Linear layers with activations in between.

    The defaults are those of Finn et al. 2017 for sine regression: two hidden layers of 40 units,
    ReLU.

    Args:
        in_features: size of an input.
        out_features: size of an output.
        hidden: widths of the hidden layers.
        activation: factory of the activation of each hidden layer.
        warp: whether each hidden layer is followed by a [warp layer][fastmeta.models.warp_linear].
            Initial weights and outputs are the same.

    Input `(n, *)` with `in_features` elements per example, output `(n, out_features)`.

    Attributes:
        layers: the flattening, the linear layers, the activations and the warp layers.

    Raises:
        ValueError: if a width is below 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (40, 40),
        activation: Callable[[], nn.Module] = nn.ReLU,
        warp: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden, out_features]
        if min(widths) < 1:
            raise ValueError(f"the width of every layer must be at least 1; got {widths}.")
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), activation()]
        named: dict[str, nn.Module] = {}
        for i, layer in enumerate(layers[:-1]):
            named[str(i)] = layer
            if warp and i and i % 2 == 0:
                named[f"warp{i // 2}"] = warp_linear(widths[i // 2])
        self.layers = nn.Sequential(OrderedDict(named))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs `(n, out_features)`."""
        output: Tensor = self.layers(x)
        return output
