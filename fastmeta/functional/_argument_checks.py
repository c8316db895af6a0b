"""Checks of examples, losses and dtypes."""

from __future__ import annotations

import torch
from torch import Tensor


def check_examples(x: Tensor) -> None:
    """Rejects an empty set of examples.

    Raises:
        ValueError: if it is empty.
    """
    if x.shape[:1] == (0,):
        raise ValueError(f"a set must hold at least one example; got inputs {tuple(x.shape)}.")


def as_scalar(loss: Tensor) -> Tensor:
    """The loss, which must be a scalar tensor.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: if it is not a scalar.
    """
    # Shape and type alone: looking at the value would wait for the device.
    if not isinstance(loss, Tensor):
        raise TypeError(f"the loss must be a scalar tensor, got {type(loss).__name__}.")
    if loss.dim() != 0:
        raise ValueError(
            f"the loss must be a scalar, got shape {tuple(loss.shape)} for each task. Average it, "
            "such as with reduction='mean'."
        )
    return loss


def check_autocast(autocast: torch.dtype, params: torch.dtype) -> None:
    """Rejects other dtypes of autocast and of the parameters than those supported.

    Raises:
        ValueError: in either case.
    """
    if autocast not in (torch.bfloat16, torch.float16):
        raise ValueError(f"autocast must be torch.bfloat16 or torch.float16, got {autocast}.")
    if params != torch.float32:
        raise ValueError(
            f"autocast={autocast} needs float32 parameters, which it keeps; got {params}. "
            "Convert the module with .float(), or leave autocast out."
        )
