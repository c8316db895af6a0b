"""Small modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Flatten", "Lambda", "Scale", "freeze", "unfreeze"]

_Module = TypeVar("_Module", bound=nn.Module)


class Lambda(nn.Module):
    """A function as a module.

    Args:
        lmb: the function.
    """

    def __init__(self, lmb: Callable[..., Any]) -> None:
        super().__init__()
        self.lmb = lmb

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.lmb(*args, **kwargs)


class Flatten(nn.Module):
    """Makes rows of all dimensions but the first."""

    def forward(self, x: Tensor) -> Tensor:
        """``(n, *s)`` as ``(n, prod(s))``."""
        return x.view(x.size(0), -1)


class Scale(nn.Module):
    """Multiplies by learned numbers.

    Args:
        shape: their shape, ``(1,)`` by default.
        alpha: what they begin with.
    """

    def __init__(self, shape: int | tuple[int, ...] | None = None, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1 if shape is None else shape) * alpha)

    def forward(self, x: Tensor) -> Tensor:
        """``x * alpha``."""
        return x * self.alpha


def freeze(module: _Module) -> _Module:
    """Lets no parameter of the module get gradients, in place; detaches them from the graph."""
    for p in module.parameters():
        p.detach_().requires_grad_(False)
    return module


def unfreeze(module: _Module) -> _Module:
    """Lets all parameters of the module get gradients, in place."""
    return module.requires_grad_(True)
