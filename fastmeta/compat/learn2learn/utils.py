"""Copies of modules and other small helpers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastmeta.compat._clone import (
    clone_module,
    clone_named_parameters,
    clone_parameters,
    detach_module,
    update_module,
)

__all__ = [
    "accuracy",
    "clone_module",
    "clone_named_parameters",
    "clone_parameters",
    "detach_module",
    "magic_box",
    "update_module",
]


def accuracy(preds: Tensor, targets: Tensor) -> Tensor:
    """The share of rows of class scores ``(n, classes)`` that are largest at the target."""
    return (preds.argmax(dim=1) == targets).sum().float() / len(preds)


def magic_box(x: Any) -> Any:
    """One, with the gradient of ``x`` (DiCE, Foerster et al. 2018); what is no tensor stays."""
    return (x - x.detach()).exp() if isinstance(x, Tensor) else x
