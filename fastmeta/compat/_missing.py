"""Import aliases, and errors for names and modules of a library that its stand-in lacks."""

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
    """Completes a stand-in, all of whose modules have been imported.

    Names and modules of the original are registered relative to the package, as
    ``"optim.transforms"``.

    Args:
        package: the ``__name__`` of the stand-in.
        aliases: from each module of the original whose contents are elsewhere in the stand-in to
            the module that holds them.
        instead: from advice on what to use instead to the names and modules, separated by
            whitespace, that are missing and that it is for. Submodules of a missing module need no
            entry. Looking one up raises an ``ImportError`` (which, unlike an ``AttributeError``,
            keeps its message in ``from ... import``), importing one as a module a
            ``ModuleNotFoundError``.
    """
    moved = {f"{package}.{name}": f"{package}.{held_by}" for name, held_by in aliases.items()}
    absent = {f"{package}.{name}": use for use, names in instead.items() for name in names.split()}
    _FINDER.aliases |= moved
    _FINDER.instead |= absent
    for parent in {name.rpartition(".")[0] for name in (*moved, *absent)} & sys.modules.keys():
        module = sys.modules[parent]
        module.__dict__.setdefault("__path__", [])  # without it Python asks no finder
        module.__dict__["__getattr__"] = _FINDER.look_up(parent)


class _Finder(MetaPathFinder, Loader):
    """The finder and the loader of everything registered."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.instead: dict[str, str] = {}

    def look_up(self, module: str, held_by: str | None = None) -> Callable[[str], Any]:
        """The ``__getattr__`` of a module; an alias has the attributes of ``held_by``."""

        def getattr_(name: str) -> Any:
            fullname = f"{module}.{name}"
            if fullname in self.instead:
                raise ImportError(f"{module} has no {name}: {self.instead[fullname]}", name=module)
            if fullname in self.aliases:
                return import_module(fullname)
            if held_by is not None:
                return getattr(import_module(held_by), name)
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
        held_by = self.aliases[module.__name__]
        contents = import_module(held_by)
        module.__doc__ = contents.__doc__
        module.__dict__["__all__"] = contents.__all__
        module.__dict__["__getattr__"] = self.look_up(module.__name__, held_by)


_FINDER = _Finder()
sys.meta_path.append(_FINDER)  # last, so that it is asked only for what no other finder has
