"""Mixed order: the inner gradients of some layers only are differentiated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastmeta.adaptation.layer_pattern import read_pattern
from fastmeta.adaptation.layers import find_layers

# One mask over the parameters per inner step; the last one is that of all further steps.
Masks = Sequence[Sequence[bool]]


def read_layers(
    layers: str, params: Sequence[Tensor], names: Sequence[str]
) -> tuple[tuple[bool, ...], ...] | None:
    """The parameters whose inner gradient is differentiated.

    Args:
        layers: `"all"`, `"none"`, or a pattern as of
            [`read_pattern`][fastmeta.adaptation.layer_pattern.read_pattern].
        params: of the network.
        names: of the parameters.

    Returns:
        The masks, or `None` for `"all"`.

    Raises:
        ValueError: if the pattern does not suit the network.
    """
    if layers == "all":
        return None
    if layers == "none":
        return ((False,) * len(params),)
    found = find_layers(params, names)
    steps = read_pattern(layers, [layer.name for layer in found])
    members = [{i for k in step for i in found[k].members} for step in steps]
    return tuple(tuple(i in step for i in range(len(params))) for step in members)


def check_layers(layers: object) -> str:
    """The pattern as a string: configuration files and flags read bits as a number.

    Raises:
        ValueError: if it is neither a string nor a number made of bits.
    """
    if not isinstance(layers, str) and not set(str(layers)) <= set("01"):
        raise ValueError(f"layers must be a string, got {layers!r}. Put it in quotes.")
    return str(layers)


def mask_of(masks: Masks, step: int) -> Sequence[bool]:
    """The mask of an inner step."""
    return masks[min(step, len(masks) - 1)]
