"""Copies of modules and other small helpers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastmeta.compat.clone import (
    clone_module,
    clone_named_parameters,
    clone_parameters,
    detach_module,
    update_module,
)
from fastmeta.compat.missing import missing

__all__ = [
    "accuracy",
    "clone_module",
    "clone_named_parameters",
    "clone_parameters",
    "detach_module",
    "magic_box",
    "update_module",
]

_DISTRIBUTION = "make the distribution anew from the parameters of a cloned module."
NOT_HERE = {
    "clone_distribution": _DISTRIBUTION,
    "detach_distribution": _DISTRIBUTION,
    "flatten_config": "use dataclasses.asdict.",
}
__getattr__ = missing(__name__, NOT_HERE)


def accuracy(preds: Tensor, targets: Tensor) -> Tensor:
    """The share of rows of class scores ``(n, classes)`` that are largest at the target."""
    return (preds.argmax(dim=1) == targets).sum().float() / len(preds)


def magic_box(x: Any) -> Any:
    """One, with the gradient of ``x`` (DiCE, Foerster et al. 2018); what is no tensor stays."""
    return (x - x.detach()).exp() if isinstance(x, Tensor) else x
