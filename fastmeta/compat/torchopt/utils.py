"""State of modules and differentiable optimizers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from fastmeta._checks import check_choice
from fastmeta.compat._clone import refresh
from fastmeta.compat.torchopt.optim import MetaOptimizer

__all__ = [
    "ModuleState",
    "extract_state_dict",
    "module_clone",
    "module_detach_",
    "recover_state_dict",
    "stop_gradient",
]

CopyMode = Literal["reference", "ref", "copy", "clone", "deepcopy", "deepclone"]


class ModuleState(NamedTuple):
    """Parameters and buffers of a module, by its submodules that have some.

    Attributes:
        params: by name.
        buffers: by name.
        detach_buffers: whether `recover_state_dict` copies them.
    """

    params: tuple[dict[str, Tensor], ...]
    buffers: tuple[dict[str, Tensor], ...]
    detach_buffers: bool = False


def extract_state_dict(
    target: nn.Module | MetaOptimizer,
    *,
    by: CopyMode = "reference",
    device: torch.device | str | None = None,
    with_buffers: bool = True,
    detach_buffers: bool = False,
) -> Any:
    """The state of a module or a differentiable optimizer, for `recover_state_dict`.

    Args:
        target: the module or optimizer.
        by: `"reference"`: the tensors themselves; `"copy"`: clones of them, through which gradients
            reach the originals; `"deepcopy"`: detached copies.
        device: where to put them; by default where they are.
        with_buffers: whether the state of a module has its buffers.
        detach_buffers: whether to copy the buffers, here and in `recover_state_dict`.

    Raises:
        ValueError: if `by` is unknown or `target` something else.
    """
    replicate = _replication(by, device)
    if isinstance(target, MetaOptimizer):
        return tree_map(lambda t: replicate(t) if isinstance(t, Tensor) else t, target.state_dict())
    _check_module(target)
    of_buffers = _replication("deepcopy", device) if detach_buffers else replicate
    return ModuleState(
        _replicated(_parameters(target), replicate),
        _replicated(_buffers(target), of_buffers) if with_buffers else (),
        detach_buffers,
    )


def recover_state_dict(target: nn.Module | MetaOptimizer, state: Any) -> None:
    """Puts the tensors of a state into a module or a differentiable optimizer.

    Args:
        target: of which the state is, or one like it.
        state: from `extract_state_dict`.

    Raises:
        ValueError: if `target` is something else.
    """
    if isinstance(target, MetaOptimizer):
        target.load_state_dict(state)
        return
    _check_module(target)
    buffers = state.buffers
    if state.detach_buffers:
        buffers = _replicated(buffers, _replication("deepcopy", None))
    for places, values in ((_parameters(target), state.params), (_buffers(target), buffers)):
        for place, value in zip(places, values, strict=False):
            place.update(value)
    for part in target.modules():
        refresh(part)


def stop_gradient(target: Any) -> None:
    """Detaches tensors from their graph in place.

    Args:
        target: a module (its parameters), a differentiable optimizer, a state of either, or any
            structure of tensors.
    """
    if isinstance(target, nn.Module):
        target = list(target.parameters())
    elif isinstance(target, MetaOptimizer):
        target = target.state_dict()
    for tensor in tree_leaves(target):
        if isinstance(tensor, Tensor):
            tensor.detach_().requires_grad_(tensor.requires_grad)


def module_clone(
    target: Any,
    *,
    by: CopyMode = "reference",
    detach_buffers: bool = False,
    device: torch.device | str | None = None,
) -> Any:
    """A copy of a module, a differentiable optimizer or a structure of tensors.

    Args:
        target: what to copy. The copy of an optimizer changes the same module.
        by: how tensors are copied, see `extract_state_dict`.
        detach_buffers: see `extract_state_dict`.
        device: see `extract_state_dict`.
    """
    if not isinstance(target, nn.Module | MetaOptimizer):
        return tree_map(_replication(by, device), target)
    state = extract_state_dict(target, by=by, detach_buffers=detach_buffers, device=device)
    if isinstance(target, MetaOptimizer):
        cloned: Any = copy.copy(target)
    else:
        memo = {id(t): t for t in tree_leaves(extract_state_dict(target)) if isinstance(t, Tensor)}
        cloned = copy.deepcopy(target, memo)
    recover_state_dict(cloned, state)
    return cloned


def module_detach_(target: Any) -> Any:
    """`stop_gradient`, and returns the target."""
    stop_gradient(target)
    return target


def _parameters(module: nn.Module) -> Iterator[dict[str, Any]]:
    return (part._parameters for part in module.modules() if part._parameters)


def _buffers(module: nn.Module) -> Iterator[dict[str, Any]]:
    return (part._buffers for part in module.modules() if part._buffers)


def _replicated(
    containers: Any, replicate: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Tensor], ...]:
    return tuple({n: replicate(t) for n, t in c.items() if t is not None} for c in containers)


def _replication(by: str, device: torch.device | str | None) -> Callable[[Tensor], Tensor]:
    check_choice("by", by, ("reference", "ref", "copy", "clone", "deepcopy", "deepclone"))

    def replicate(tensor: Tensor) -> Tensor:
        if by in ("reference", "ref"):
            return tensor.to(device)
        if by in ("copy", "clone"):
            return tensor.clone().to(device)
        copied = tensor.detach().clone().to(device)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(copied, tensor.requires_grad)
        return copied.requires_grad_(tensor.requires_grad)

    return replicate


def _check_module(target: object) -> None:
    if not isinstance(target, nn.Module):
        raise ValueError(
            f"expected a module or a differentiable optimizer; got {type(target).__name__}."
        )
