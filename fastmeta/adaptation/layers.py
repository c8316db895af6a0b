"""Layers of a network, found from the shapes and names of its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

# Parameters of a co-learner, which no inner loop adapts.
_OUTSIDE = "co_learner."


class Layer(NamedTuple):
    """Parameters that are adapted together or not at all.

    Attributes:
        name: of the module that its weight belongs to.
        members: indices of its parameters.
    """

    name: str
    members: list[int]


def find_layers(params: Sequence[Tensor], names: Sequence[str]) -> list[Layer]:
    """The layers of a network: one for each parameter of two or more dimensions.

    Those of fewer (biases, scales and shifts of normalisation) belong to the layer before them, and
    to the first layer if there is none before. So Conv4 has five layers, four blocks and the head,
    and an MLP one per `nn.Linear`. The `log_sigma` of a sparse layer
    ([`fastmeta.models.SparseLinear`][]) belongs to its weight. Parameters of a co-learner
    (`co_learner.*`) are in no layer.

    Args:
        params: in the order of the module.
        names: of the parameters, such as `"features.0.0.weight"` in the layer `"features.0.0"`.
    """
    inside = [i for i, name in enumerate(names) if in_module(name)]
    starts = [
        k
        for k, i in enumerate(inside)
        if params[i].dim() > 1 and names[i].split(".")[-1] != "log_sigma"
    ] or [0]
    bounds = [0, *starts[1:], len(inside)]
    return [
        Layer(_module_of(names[inside[start]]), inside[low:high])
        for start, low, high in zip(starts, bounds, bounds[1:], strict=False)
    ]


def in_module(name: str) -> bool:
    """Whether a parameter is the module's own, not a co-learner's."""
    return not name.startswith(_OUTSIDE)


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter
