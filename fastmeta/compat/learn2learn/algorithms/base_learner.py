"""What the wrappers of a module have in common."""

from __future__ import annotations

from typing import Any

from torch import nn


class BaseLearner(nn.Module):
    """A module with the methods of an algorithm; other attributes are those of ``module``."""

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
        """What the module returns."""
        return self.module(*args, **kwargs)
