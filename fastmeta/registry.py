"""Registries: one mapping per kind of component, from names to what they stand for.

Other installed distributions add names as entry points of groups such as `fastmeta.methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from fastmeta._checks import did_you_mean

Value = TypeVar("Value")


class PluginError(ImportError):
    """An entry point of another distribution cannot be used; the message names both."""


class UnknownNameError(ValueError, KeyError):
    """A registry has no such name; the message lists the names it has."""

    __str__ = ValueError.__str__  # KeyError would show the message as a string literal


class Registry(Mapping[str, Value]):
    """The names of one kind, a mapping: the library's own, then those of plug-ins.

    Plug-ins are looked for when a name is not the library's, or all names are listed; one is
    imported when its name is looked up. `registry[name] = value` adds a name in this process.

    Args:
        kind: such as `"method"`; plug-ins are the entry points of the group `fastmeta.<kind>s`.
        own: the library's names and what they stand for.
        expected: the type of what plug-ins provide.
        convert: from what a plug-in provides to a value of the registry; the identity by default.

    Attributes:
        own: the names that are not from plug-ins.
    """

    def __init__(
        self,
        kind: str,
        own: Mapping[str, Value],
        expected: Any = Callable,
        convert: Callable[[Any], Value] | None = None,
    ) -> None:
        self.kind = kind
        self.own = dict(own)
        self._expected = expected
        self._convert = convert

    def __getitem__(self, name: str) -> Value:
        """What a name stands for.

        Raises:
            PluginError: if a plug-in cannot be imported, or provides something else than expected.
            UnknownNameError: if the name is unknown.
        """
        if name in self.own:
            return self.own[name]
        plugins = self.plugins()
        if name not in plugins:
            known = (*self.own, *plugins)
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}; expected one of {', '.join(known)}."
                f"{did_you_mean(name, known)}"
            )
        return self._load(plugins[name])

    def __setitem__(self, name: str, value: Value) -> None:
        self.own[name] = value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self.own or name in self.plugins())

    def __iter__(self) -> Iterator[str]:
        yield from (*self.own, *self.plugins())

    def __len__(self) -> int:
        return len(self.own) + len(self.plugins())

    def plugins(self) -> dict[str, EntryPoint]:
        """The entry points of plug-ins by name; nothing is imported.

        Raises:
            PluginError: if one has a name of the library, or two have the same.
        """
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=f"fastmeta.{self.kind}s"):
            if entry.name in self.own or entry.name in found:
                first = found.get(entry.name)
                raise PluginError(
                    f"{origin(entry)} registers the {self.kind} {entry.name!r}, which "
                    f"{'fastmeta' if first is None else origin(first)} already provides. Uninstall "
                    "it, or ask its authors to rename it."
                )
            found[entry.name] = entry
        return found

    def _load(self, entry: EntryPoint) -> Value:
        what = f"the {self.kind} {entry.name!r} of {origin(entry)} ({entry.value})"
        try:
            value: Any = entry.load()
        except Exception as error:  # another's code may raise anything
            raise PluginError(
                f"{what} cannot be imported: {type(error).__name__}: {error}. Fix or uninstall it."
            ) from error
        if not isinstance(value, self._expected):
            raise PluginError(
                f"{what} must be a {self._expected.__name__}; got {value!r}. Fix or uninstall it."
            )
        converted: Value = value if self._convert is None else self._convert(value)
        return converted


def origin(entry: EntryPoint) -> str:
    """Name and version of the distribution that an entry point comes from."""
    return (
        "an unknown distribution"
        if entry.dist is None
        else f"{entry.dist.name} {entry.dist.version}"
    )
