"""Import aliases, and errors for names and modules that a replacement does not provide."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from typing_extensions import override


def register(package: str, aliases: Mapping[str, str], instead: Mapping[str, str]) -> None:
    """Registers the aliases and the missing names of a replacement for another library.

    Call it after all modules of the package have been imported. Names and modules are relative to
    the package, such as `"optim.transforms"`.

    Looking up a missing name raises an `ImportError`, which, unlike an `AttributeError`, keeps
    its message in `from ... import`; importing a missing module raises a `ModuleNotFoundError`.

    Args:
        package: the `__name__` of the replacement.
        aliases: maps each module of the original library that is not a file here to the module
            that holds its contents.
        instead: maps advice on what to use instead to the missing names and modules it applies to,
            separated by whitespace. Submodules of a missing module need no entry.
    """
    moved = {f"{package}.{name}": f"{package}.{held_by}" for name, held_by in aliases.items()}
    absent = {f"{package}.{name}": use for use, names in instead.items() for name in names.split()}
    _FINDER.aliases |= moved
    _FINDER.instead |= absent
    for parent in {name.rpartition(".")[0] for name in (*moved, *absent)} & sys.modules.keys():
        module = sys.modules[parent]
        module.__dict__.setdefault("__path__", [])  # or Python does not look for submodules
        module.__dict__["__getattr__"] = _FINDER.look_up(parent)


class _Finder(MetaPathFinder, Loader):
    """Finds and loads registered modules."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.instead: dict[str, str] = {}

    def look_up(self, module: str, contents: ModuleType | None = None) -> Callable[[str], Any]:
        """The `__getattr__` of a module; an alias has the names of `contents`."""

        def getattr_(name: str) -> Any:
            fullname = f"{module}.{name}"
            if fullname in self.instead:
                raise ImportError(f"{module} has no {name}: {self.instead[fullname]}", name=module)
            if fullname in self.aliases:
                return import_module(fullname)
            if contents is not None and not name.startswith("__"):
                return getattr(contents, name)
            raise AttributeError(f"module {module!r} has no attribute {name!r}")

        return getattr_

    @override
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname in self.instead:
            parent, _, name = fullname.rpartition(".")
            raise ModuleNotFoundError(
                f"{parent} has no {name}: {self.instead[fullname]}", name=fullname
            )
        return ModuleSpec(fullname, self, is_package=True) if fullname in self.aliases else None

    @override
    def exec_module(self, module: ModuleType) -> None:
        contents = import_module(self.aliases[module.__name__])
        module.__doc__ = contents.__doc__
        module.__dict__["__all__"] = contents.__all__
        module.__dict__["__getattr__"] = self.look_up(module.__name__, contents)


_FINDER = _Finder()
sys.meta_path.append(_FINDER)  # last: consulted only after all other finders
