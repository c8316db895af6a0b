"""Hooks on gradients, as a gradient transformation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastmeta.compat.torchopt.transform import GradientTransformation, map_present, stateless

__all__ = ["nan_to_num_hook", "register_hook", "zero_nan_hook"]

Hook = Callable[[Tensor], "Tensor | None"]


def zero_nan_hook(g: Tensor) -> Tensor:
    """The gradient with 0 for NaN."""
    return g.nan_to_num(nan=0.0)


def nan_to_num_hook(
    nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Hook:
    """A hook that is `torch.nan_to_num`."""
    return lambda g: g.nan_to_num(nan=nan, posinf=posinf, neginf=neginf)


def register_hook(hook: Hook) -> GradientTransformation:
    """Registers a hook on the updates: it is called with *their* gradients, in a backward pass."""

    def function(updates: Any, params: Any, inplace: bool) -> Any:
        map_present(lambda g: g.register_hook(hook), updates)
        return updates

    return stateless(function)
