"""Words that other installed distributions bring, as entry points such as ``fastmeta.methods``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class PluginError(ImportError):
    """An entry point of another distribution cannot be used; the message names both."""


class Registry(Collection[str], Generic[Value]):
    """The words of one kind: the library's own, then those of plug-ins.

    Plug-ins are looked for when a word is not the library's, or all are listed, and imported when
    one is used.

    Args:
        kind: ``"method"``, ``"adaptation"``, ``"metagrad"``, ``"aggregation"`` or ``"dataset"``;
            its plug-ins are the entry points of the group ``fastmeta.<kind>s``.
        own: the library's words and what they stand for.
        expected: what plug-ins bring, a type.
    """

    def __init__(self, kind: str, own: Mapping[str, Value], expected: Any = Callable) -> None:
        self.kind = kind
        self.own = own
        self.expected = expected

    def __contains__(self, word: object) -> bool:
        return word in self.own or word in self.plugins()

    def __iter__(self) -> Iterator[str]:
        yield from (*self.own, *self.plugins())

    def __len__(self) -> int:
        return len(self.own) + len(self.plugins())

    def plugins(self) -> dict[str, EntryPoint]:
        """The entry points of plug-ins by word; nothing is imported.

        Raises:
            PluginError: if one has a word of the library, or two have the same.
        """
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=f"fastmeta.{self.kind}s"):
            if entry.name in self.own or entry.name in found:
                first = found.get(entry.name)
                raise PluginError(
                    f"{origin(entry)} registers the {self.kind} {entry.name!r}, which "
                    f"{'fastmeta' if first is None else origin(first)} has already. Uninstall it, "
                    "or ask its authors for another word."
                )
            found[entry.name] = entry
        return found

    def find(self, word: str) -> Value:
        """What a word stands for.

        Raises:
            PluginError: if a plug-in cannot be imported, or brings something else than expected.
            ValueError: if the word is unknown.
        """
        if word in self.own:
            return self.own[word]
        plugins = self.plugins()
        if word not in plugins:
            known = ", ".join((*self.own, *plugins))
            raise ValueError(f"unknown {self.kind} {word!r}; expected one of {known}.")
        return self._loaded(plugins[word])

    def _loaded(self, entry: EntryPoint) -> Value:
        what = f"the {self.kind} {entry.name!r} of {origin(entry)} ({entry.value})"
        try:
            value: Value = entry.load()
        except Exception as error:  # another's code may raise anything
            raise PluginError(
                f"{what} cannot be imported: {type(error).__name__}: {error}. Fix or uninstall it."
            ) from error
        if not isinstance(value, self.expected):
            raise PluginError(
                f"{what} must be a {self.expected.__name__}; got {value!r}. Fix or uninstall it."
            )
        return value


def origin(entry: EntryPoint) -> str:
    """Name and version of the distribution that an entry point comes from."""
    return (
        "an unknown distribution"
        if entry.dist is None
        else f"{entry.dist.name} {entry.dist.version}"
    )
