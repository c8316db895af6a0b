"""The layers of a network whose parameters are known from an optimizer alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fastmeta.metagrad import GSL


def layer_masks(
    metagrad: GSL, groups: Sequence[Mapping[str, Any]]
) -> Sequence[Sequence[bool]] | None:
    """Which trainable parameters' inner gradients are differentiated, in the order of the groups.

    Args:
        metagrad: has the pattern of layers.
        groups: parameter groups of an optimizer; their names, if any, are those of the module.

    Returns:
        One mask per inner step, the last one for all further steps; `None` means all.

    Raises:
        ValueError: if the pattern does not suit the network, or the layer of a parameter is not
            known.
    """
    found = _trainable(groups)
    order = _network_order(found)
    params = [found[i][2] for i in order]
    names = [found[i][1] or f"parameter {i}" for i in order]
    masks: Sequence[Sequence[bool]] | None = metagrad.prepare(params, names) if params else None
    if masks is None:
        return None
    position = {i: k for k, i in enumerate(order)}
    return [[mask[position[i]] for i in range(len(order))] for mask in masks]


def _trainable(groups: Sequence[Mapping[str, Any]]) -> list[tuple[int, str, Tensor]]:
    """Group, name (empty if unknown) and tensor of each trainable parameter."""
    found: list[tuple[int, str, Tensor]] = []
    for k, group in enumerate(groups):
        names = group.get("param_names") or [""] * len(group["params"])
        for name, param in zip(names, group["params"], strict=True):
            if param.requires_grad:
                found.append((k, name, param))
    return found


def _network_order(found: Sequence[tuple[int, str, Tensor]]) -> list[int]:
    """Positions such that biases, scales and shifts follow the weight of their layer.

    That is the weight before them in the same group; or, if there is none, one of the same module.
    """
    modules: dict[str, int] = {}
    for i, (_, name, param) in enumerate(found):
        if param.dim() > 1 and "." in name:
            modules[name.rpartition(".")[0]] = i
    keys, weight, last = [], -1, 0
    for i, (group, name, param) in enumerate(found):
        if group != last:
            weight, last = -1, group
        if param.dim() > 1:
            weight = i
        home = weight
        if home < 0:
            home = modules.get(name.rpartition(".")[0], -1)
            if group and not name:
                raise ValueError(
                    f"parameter group {group} begins with a bias, scale or shift, and its layer is "
                    "unknown; expected names: build the groups from model.named_parameters(), "
                    "whose (name, parameter) pairs are accepted in place of parameters."
                )
        keys.append((home, i))
    return sorted(range(len(found)), key=keys.__getitem__)
