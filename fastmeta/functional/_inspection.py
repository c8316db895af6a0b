"""Inspection of modules for hooks, replaced forwards and compiled graphs."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module


def globally_hooked() -> bool:
    """Whether a hook is registered for all modules."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` holds a graph of the module, which would ignore a new forward."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def is_plain(module: nn.Module) -> bool:
    """Whether the module has no hooks, and the forward of its class."""
    return not (
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
