"""Fields of a configuration: their help texts, and checks of their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from fastmeta._checks import did_you_mean
from fastmeta.train.errors import ConfigError


def option(
    text: str,
    *,
    default: Any = MISSING,
    choices: Collection[str] | None = None,
    minimum: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field with the metadata that the command line and the checks use.

    Args:
        text: one line of help.
        default: of the field; without one it depends on the dataset or method.
        choices: the allowed values; by default those of the type.
        minimum: the smallest allowed value.
        above: a lower bound that the value must exceed.
    """
    metadata = {"help": text, "choices": choices, "minimum": minimum, "above": above}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Kind:
    """A type of option.

    Attributes:
        label: its name in a message.
        read: the value in its canonical form; raises `TypeError` or `ValueError`.
        optional: whether `None` is a value.
    """

    label: str
    read: Callable[[Any], Any]
    optional: bool = False


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _same(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return read


def _integers(value: Any) -> tuple[int, ...]:
    return tuple(_integer(v) for v in (value if isinstance(value, list | tuple) else [value]))


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError
    return dict(value)


_KINDS: dict[Any, Kind] = {
    bool: Kind("true or false", _same(bool)),
    float: Kind("a finite number", _number),
    int: Kind("an integer", _integer),
    str: Kind("a text", _same(str)),
    tuple: Kind("a list of integers", _integers),
    Mapping: Kind("a table of key = value", _table),
}


def kind_of(hint: Any) -> Kind:
    """The kind of option that has a type annotation."""
    if get_origin(hint) is Literal:
        return _KINDS[str]
    if isinstance(hint, UnionType):
        (inner,) = (arg for arg in get_args(hint) if arg is not NoneType)
        kind = _KINDS[inner]
        return Kind(f"{kind.label} or nothing", kind.read, optional=True)
    return _KINDS[get_origin(hint) or hint]


def choices_of(hint: Any, metadata: Mapping[str, Any]) -> Collection[str] | None:
    """The allowed values of an option, or `None` if its type and range alone restrict them."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    choices: Collection[str] | None = metadata["choices"]
    return choices


def checked(name: str, hint: Any, metadata: Mapping[str, Any], value: Any) -> Any:
    """`value` in its canonical form.

    Raises:
        ConfigError: if it has the wrong type, is not one of the choices or is out of range.
    """
    kind = kind_of(hint)
    if value is None and kind.optional:
        return None
    try:
        result = kind.read(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} must be {kind.label}; got {value!r}.") from None
    choices, minimum, above = choices_of(hint, metadata), metadata["minimum"], metadata["above"]
    if choices is not None and result not in choices:
        near = did_you_mean(result, choices)
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{near}")
    for number in result if isinstance(result, tuple) else (result,):
        if minimum is not None and number < minimum:
            raise ConfigError(f"{name} must be at least {minimum}; got {value!r}.")
        if above is not None and number <= above:
            raise ConfigError(f"{name} must be greater than {above}; got {value!r}.")
    return result
