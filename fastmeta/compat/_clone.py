"""Differentiable copies of modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def clone_module(module: Module, memo: dict[Tensor, Tensor] | None = None) -> Module:
    """A copy of the module with `clone()`d parameters; gradients reach those of the module.

    Buffers that require gradients are cloned as well; all other buffers (such as running
    statistics), hooks and other attributes are shared with the module. Tied parameters stay tied.

    Args:
        module: the module.
        memo: maps tensors to their clones; tensors in it are not cloned again, and new clones are
            added.
    """
    memo = {} if memo is None else memo
    clone: Any = module.__new__(type(module))
    clone.__dict__ = module.__dict__.copy()
    clone._parameters = {name: _cloned(p, memo) for name, p in module._parameters.items()}
    clone._buffers = {
        name: _cloned(b, memo) if b is not None and b.requires_grad else b
        for name, b in module._buffers.items()
    }
    clone._modules = {
        name: None if child is None else clone_module(child, memo)
        for name, child in module._modules.items()
    }
    refresh(clone)
    copied: Module = clone
    return copied


def clone_parameters(param_list: Iterable[Tensor]) -> list[Tensor]:
    """A `clone()` of each tensor."""
    return [p.clone() for p in param_list]


def clone_named_parameters(param_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A `clone()` of each tensor, keyed by name."""
    return {name: p.clone() for name, p in param_dict.items()}


def detach_module(module: nn.Module, keep_requires_grad: bool = False) -> None:
    """Detaches the parameters, and buffers that require gradients, of a clone in place.

    Args:
        module: the clone.
        keep_requires_grad: whether tensors that required gradients still do.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.requires_grad:
            tensor.detach_().requires_grad_(keep_requires_grad)


def update_module(
    module: Module,
    updates: Sequence[Tensor | None] | None = None,
    memo: dict[Tensor, Tensor] | None = None,
) -> Module:
    """Adds an update to each parameter of a module, in place and differentiably.

    Args:
        module: the module, usually a clone.
        updates: one for each of `module.parameters()`; `None` leaves the parameter unchanged.
            By default, the `update` attributes of parameters and buffers that have one.
        memo: maps tensors to their replacements; new replacements are added.

    Returns:
        The module.

    Raises:
        ValueError: if the number of updates differs from the number of parameters.
    """
    memo = {} if memo is None else memo
    if updates is not None:
        params: list[Any] = list(module.parameters())
        if len(params) != len(updates):
            raise ValueError(
                f"expected an update, or None, for each of the {len(params)} parameters; got "
                f"{len(updates)}. Pass one for each of module.parameters()."
            )
        for param, update in zip(params, updates, strict=True):
            param.update = update
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            _replace(tensors, memo)
        refresh(part)
    return module


def refresh(module: nn.Module) -> None:
    """Updates the flat list of parameters that a recurrent module keeps."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def _cloned(tensor: Tensor | None, memo: dict[Tensor, Tensor]) -> Tensor | None:
    if tensor is None:
        return None
    if tensor not in memo:
        memo[tensor] = tensor.clone()
    return memo[tensor]


def _replace(tensors: dict[str, Any], memo: dict[Tensor, Tensor]) -> None:
    for name, old in tensors.items():
        if old not in memo:
            update = getattr(old, "update", None)
            if update is None:
                continue
            memo[old] = old + update
            old.update = None
        tensors[name] = memo[old]
