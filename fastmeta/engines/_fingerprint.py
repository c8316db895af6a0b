"""What a traced computation holds as constants: the Python values of modules and components."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from operator import is_
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

Fingerprint = dict[str, object]


class Layout(NamedTuple):
    """What compiled code depends on besides the values of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """The layout of a tensor."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    @override
    def __repr__(self) -> str:
        return f"{tuple(self.shape)} ({self.dtype}, stride {self.stride}, {self.device})"


_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Layout)
# What modules keep for themselves: parameters and buffers are inputs, hooks are refused, and
# recurrent ones list their weights anew in each forward pass.
_INTERNAL = frozenset(vars(nn.Module())) - {"training"} | {"_flat_weights", "_flat_weight_refs"}
_MAX_DEPTH = 6


class _Same:
    """Equal only for the same object, which it keeps alive."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return type(self.value).__name__


class Fingerprints:
    """The values that objects hold, by name: numbers, texts and flags by value, others by identity.

    Attributes of modules, of other objects, and of what these hold; items of lists, tuples and
    mappings; variables that a function has captured, and its defaults. Of tensors, it is the layout
    and (but for buffers) which object it is.

    As long as all that is held are the same objects, the last fingerprint is returned, which takes
    a quarter of the time.
    """

    def __init__(self) -> None:
        self._last: Fingerprint = {}
        self._snapshot = _Snapshot({})

    def of(self, **objects: object) -> Fingerprint:
        """The fingerprint of objects, by name; the same dictionary if nothing has changed."""
        if not self._snapshot.still_holds(objects):
            found: Fingerprint = {}
            seen: dict[int, Any] = {}
            for name, value in objects.items():
                _collect(name, value, found, seen, 0)
            self._last, self._snapshot = found, _Snapshot(objects, seen.values())
        return self._last


class _Snapshot:
    """Which objects the containers of a fingerprint hold, kept alive, and the tensors' layouts."""

    def __init__(self, objects: dict[str, object], containers: Iterable[Any] = ()) -> None:
        self._modules: list[nn.Module] = []
        self._dicts: list[dict[Any, Any]] = []
        self._others: list[Any] = []
        fixed: list[object] = []
        for value in containers:
            if isinstance(value, nn.Module):
                self._modules.append(value)
                self._dicts += (value._parameters, value._buffers, value._modules)
            elif type(value) in (dict, OrderedDict):
                self._dicts.append(value)
            elif type(value) is tuple:
                fixed += value
            else:
                self._others.append(value)
        held, self._names = self._look(objects)
        self._held = [*held]
        self._tensors = [v for v in (*self._held, *fixed) if isinstance(v, Tensor)]
        self._layouts = [*map(Layout.of, self._tensors)]

    def still_holds(self, objects: dict[str, object]) -> bool:
        """Whether all is as it was; if not, the fingerprint may have changed."""
        held, names = self._look(objects)
        return (
            names == self._names
            and all(map(is_, held, self._held))
            and [*map(Layout.of, self._tensors)] == self._layouts
        )

    def _look(self, objects: dict[str, object]) -> tuple[Iterator[object], list[str | int]]:
        """What is held, in order; how much in each container, and names that are built anew."""
        dicts = [objects, *map(vars, self._modules), *self._dicts]
        parts = [[*_parts(other)] for other in self._others]
        pairs = [*chain.from_iterable(parts)]
        held = chain(
            map(type, chain(self._modules, self._others)),
            chain.from_iterable(dicts),
            chain.from_iterable(map(dict.values, dicts)),
            [value for _, value in pairs],
        )
        return held, [*map(len, dicts), *map(len, parts), *(name for name, _ in pairs)]


def difference(before: Fingerprint, after: Fingerprint) -> list[str]:
    """What differs: `name: old -> new`."""
    changes = []
    for name in before | after:
        old, new = (part.get(name, "nothing") for part in (before, after))
        if old != new:
            changes.append(f"{name}: {old!r:.80} -> {new!r:.80}")
    return changes


def _collect(name: str, value: Any, found: Fingerprint, seen: dict[int, Any], depth: int) -> None:
    if isinstance(value, _VALUES):
        found[name] = value
    elif isinstance(value, Tensor):
        found[name] = (_Same(value), Layout.of(value))
    elif id(value) not in seen and depth < _MAX_DEPTH:
        seen[id(value)] = value
        parts = list(_parts(value))
        found[name] = type(value) if parts and type(value) is not FunctionType else _Same(value)
        for part, content in parts:
            _collect(f"{name}.{part}", content, found, seen, depth + 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        yield from ((key, held) for key, held in vars(value).items() if key not in _INTERNAL)
        yield from value._parameters.items()
        for key, buffer in value._buffers.items():
            yield key, None if buffer is None else Layout.of(buffer)
        yield from value._modules.items()
    elif isinstance(value, Mapping):
        yield from ((str(key), held) for key, held in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((str(i), held) for i, held in enumerate(value))
    elif isinstance(value, MethodType):
        yield from (("self", value.__self__), ("function", value.__func__))
    elif isinstance(value, partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, FunctionType):
        for key, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield key, cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        yield from ((f"default {i}", held) for i, held in enumerate(value.__defaults__ or ()))
        yield from (value.__kwdefaults__ or {}).items()
    elif not isinstance(value, type):
        yield from getattr(value, "__dict__", {}).items()
