"""What may be attached to a module, so that its forward must not be skipped."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def globally_hooked() -> bool:
    """Whether a hook is registered for every module there is."""
    return any(getattr(torch_module, f"_global{name}") for name in _HOOKS)


def is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` holds a graph of the module, which a new forward would undo."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def is_plain(module: nn.Module) -> bool:
    """Whether the module has no hook and no forward of its own besides its class's."""
    return "forward" not in vars(module) and not any(getattr(module, name) for name in _HOOKS)
