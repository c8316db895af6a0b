"""The public names of the package."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import FunctionType

import fastmeta


def test_every_public_name_exists_and_is_documented() -> None:
    modules = [fastmeta] + [
        importlib.import_module(m.name)
        for m in pkgutil.walk_packages(fastmeta.__path__, "fastmeta.")
        if not m.name.endswith(("__main__", "_C", "_testing"))
        if m.name != "fastmeta.lightning" or importlib.util.find_spec("lightning")
    ]
    for module in modules:
        assert module.__doc__, module.__name__
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if isinstance(value, type | FunctionType):
                assert value.__doc__, f"{module.__name__}.{name}"
