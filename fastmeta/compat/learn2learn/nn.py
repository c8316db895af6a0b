"""Small `nn.Module` building blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Flatten", "Lambda", "Scale", "freeze", "unfreeze"]

_Module = TypeVar("_Module", bound=nn.Module)


class Lambda(nn.Module):
    """Wraps a function as a module.

    Args:
        lmb: the function.
    """

    def __init__(self, lmb: Callable[..., Any]) -> None:
        super().__init__()
        self.lmb = lmb

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.lmb(*args, **kwargs)


class Flatten(nn.Module):
    """Flattens all dimensions but the first."""

    def forward(self, x: Tensor) -> Tensor:
        """`(n, *s)` to `(n, prod(s))`."""
        return x.view(x.size(0), -1)


class Scale(nn.Module):
    """Multiplies by learned factors.

    Args:
        shape: the shape of the factors, `(1,)` by default.
        alpha: the initial value of the factors.
    """

    def __init__(self, shape: int | tuple[int, ...] | None = None, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1 if shape is None else shape) * alpha)

    def forward(self, x: Tensor) -> Tensor:
        """`x * alpha`."""
        return x * self.alpha


def freeze(module: _Module) -> _Module:
    """Detaches the parameters of the module and disables their gradients, in place."""
    for p in module.parameters():
        p.detach_().requires_grad_(False)
    return module


def unfreeze(module: _Module) -> _Module:
    """Enables gradients for all parameters of the module, in place."""
    return module.requires_grad_(True)
