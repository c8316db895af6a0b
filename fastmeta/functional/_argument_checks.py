"""Checks of examples, losses and dtypes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastmeta.tasks import Examples, named_tensors


def check_examples(x: Examples) -> None:
    """Rejects an empty set of examples.

    Raises:
        ValueError: if it is empty.
    """
    for name, tensor in named_tensors(x, "inputs"):
        if tensor.shape[:1] == (0,):
            raise ValueError(
                f"a set must hold at least one example; got {name} {tuple(tensor.shape)}."
            )


def check_params(params: Iterable[Tensor]) -> None:
    """Rejects trainable parameters of several dtypes or devices.

    Raises:
        ValueError: if there are several.
    """
    kinds = {(p.dtype, p.device) for p in params}
    if len(kinds) > 1:
        raise ValueError(
            "the trainable parameters must have one dtype and one device, got "
            f"{', '.join(f'{d} on {v}' for d, v in sorted(kinds, key=str))}. "
            "Move or convert the module, or freeze the others with requires_grad_(False)."
        )


def check_checkpointing(module: nn.Module) -> None:
    """Rejects a module whose own activation checkpointing is on, such as Hugging Face models have.

    It would recompute activations in the backward pass, when the module's own parameters have
    replaced the fast weights again.

    Raises:
        ValueError: if it is.
    """
    for name, part in module.named_modules():
        if part.training and getattr(part, "gradient_checkpointing", False) is True:
            raise ValueError(
                f"activation checkpointing of the submodule {name!r} is on, which would recompute "
                "activations with the module's own parameters instead of the fast weights. Turn it "
                "off with gradient_checkpointing_disable(), or activation_checkpointing_disable() "
                "in newer releases of transformers, and give the learner checkpoint=True."
            )


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
