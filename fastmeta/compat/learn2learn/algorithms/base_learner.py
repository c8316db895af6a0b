"""Base class of module wrappers."""

from __future__ import annotations

from typing import Any

from torch import nn


class BaseLearner(nn.Module):
    """A wrapper that forwards calls and unknown attributes to `module`."""

    module: nn.Module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            wrapped = self.__dict__.get("_modules", {}).get("module")
            if wrapped is None:
                raise
            return getattr(wrapped, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module."""
        return self.module(*args, **kwargs)
