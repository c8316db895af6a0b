"""The options of a component: read from its signature and docstring, and checked by name."""

from __future__ import annotations

import inspect
import numbers
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fastmeta._checks import did_you_mean, is_integer

Factory = TypeVar("Factory", bound=Callable[..., Any])
Target = Callable[[Mapping[str, Any]], Callable[..., Any]]
REQUIRED = inspect.Parameter.empty
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_NAMES: dict[Any, str] = {
    Any: "anything",
    NoneType: "none",
    Path: "a path",
    bool: "true or false",
    float: "a number",
    int: "an integer",
    str: "a string",
}


@dataclass(frozen=True)
class Option:
    """An option of a component.

    Attributes:
        name: the keyword.
        hint: its type annotation, `Any` if there is none.
        default: its default, or `REQUIRED`.
        text: its meaning, from the docstring.
    """

    name: str
    hint: Any
    default: Any
    text: str


def forwards_options(target: Target) -> Callable[[Factory], Factory]:
    """Marks a factory whose `**options` go to another one, so that they can be listed.

    Args:
        target: from the options given to the one that takes the rest.
    """

    def mark(factory: Factory) -> Factory:
        factory.forwards_options = target  # type: ignore[attr-defined]
        return factory

    return mark


def named(others: Mapping[str, Callable[..., Any]], option: str, default: str) -> Target:
    """The target of `forwards_options` that an option names.

    Args:
        others: the factories, by name.
        option: whose value is a name.
        default: the name without the option, or for an unknown one.
    """

    def target(given: Mapping[str, Any]) -> Callable[..., Any]:
        name = given.get(option)
        return others[name if isinstance(name, str) and name in others else default]

    return target


def options_of(
    factory: Callable[..., Any], given: Mapping[str, Any] | None = None, fixed: Collection[str] = ()
) -> dict[str, Option] | None:
    """The options of a component by name, or `None` if it takes any.

    Args:
        factory: makes the component; a class, a function or a `partial` of one, whose keywords
            are no options.
        given: options that decide what a factory with `forwards_options` takes.
        fixed: parameters that are no options, such as `lr`.
    """
    given = given or {}
    try:
        signature = inspect.signature(factory)
    except ValueError:  # of a compiled function without a signature
        return None
    hints, texts = _hints(factory), _argument_texts(factory)
    bound = factory.keywords if isinstance(factory, partial) else ()
    found = {
        name: Option(name, hints.get(name, Any), item.default, texts.get(name, ""))
        for name, item in signature.parameters.items()
        if item.kind in _NAMED and name not in {*fixed, *bound}
    }
    if any(item.kind is inspect.Parameter.VAR_KEYWORD for item in signature.parameters.values()):
        target = getattr(_function(factory), "forwards_options", None)
        rest = None if target is None else options_of(target(given), given, fixed)
        return None if rest is None else {**rest, **found}
    return found


def construct(
    label: str, factory: Callable[..., Any], options: Mapping[str, Any], *args: Any, **fixed: Any
) -> Any:
    """`factory(*args, **fixed, **options)`, with errors that name the component and its options.

    Args:
        label: of the component, the beginning of the message.
        factory: see `options_of`.
        options: of the user.
        *args: positional arguments, which no option may replace.
        **fixed: further arguments, which no option may replace.

    Raises:
        TypeError: if there is no such option, or a required one is missing.
        ValueError: if an option has a value of another type than annotated, or the component
            refuses it.
    """
    check_options(label, factory, options, {*fixed, *_positional(factory)[: len(args)]})
    try:
        return factory(*args, **fixed, **options)
    except ValueError as error:
        if type(error) is not ValueError:
            raise  # of a kind of its own, such as a damaged file
        raise ValueError(f"{label}: {error}") from error


def check_options(
    label: str, factory: Callable[..., Any], options: Mapping[str, Any], taken: Collection[str] = ()
) -> None:
    """Refuses options that a factory does not have, and values of another type than annotated.

    Args:
        label: of the component, the beginning of the message.
        factory: see `options_of`.
        options: of the user.
        taken: parameters that no option may replace.

    Raises:
        TypeError: if there is no such option, or a required one is missing.
        ValueError: if an option has a value of another type than annotated.
    """
    known = options_of(factory, options, taken)
    for name in options:
        if name in taken or (known is not None and name not in known):
            raise TypeError(_unknown(label, name, [] if known is None else [*known]))
    for option in (known or {}).values():
        if option.name in options:
            _check_type(label, option, options[option.name])
        elif option.default is REQUIRED:
            raise TypeError(f"{label} needs the option {option.name!r}.")


def _check_type(label: str, option: Option, value: Any) -> None:
    if not matches(value, option.hint):
        near = did_you_mean(value, [str(v) for v in get_args(option.hint)])
        raise ValueError(
            f"{label}: {option.name} must be {describe(option.hint)}; got {value!r}.{near}"
        )


def _unknown(label: str, name: str, known: Collection[str]) -> str:
    if not known:
        return f"{label} has no option {name!r}. It takes no options."
    return (
        f"{label} has no option {name!r}.{did_you_mean(name, known)} Options: {', '.join(known)}."
    )


def summary_of(factory: Callable[..., Any]) -> str:
    """The first sentence of a component's docstring."""
    paragraph = (inspect.getdoc(_function(factory)) or "").partition("\n\n")[0]
    sentence = re.split(r"(?<=\.)\s", paragraph, maxsplit=1)[0]
    return _plain(sentence)


def describe(hint: Any) -> str:
    """What values a type annotation allows: `a number or none`, `one of a, b`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, UnionType):
        return " or ".join(map(describe, _configurable(inner)))
    if origin is tuple and Ellipsis not in inner:
        return f"a list [{', '.join(map(describe, inner))}]"
    if _is_sequence(origin):
        return f"a list, each {describe(inner[0])}" if inner else "a list"
    return _NAMES.get(hint) or str(getattr(origin or hint, "__name__", hint))


def _configurable(members: tuple[Any, ...]) -> list[Any]:
    """The members of a union that a configuration can hold: no tensors."""
    return [m for m in members if getattr(m, "__name__", "") != "Tensor"]


def matches(value: Any, hint: Any) -> bool:
    """Whether a value from a configuration is of the annotated type; true for unknown types."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(matches(value, part) for part in _configurable(inner))
    if origin is tuple and Ellipsis not in inner:
        same = isinstance(value, list | tuple) and len(value) == len(inner)
        return same and all(map(matches, value, inner))
    if _is_sequence(origin):
        return isinstance(value, list | tuple) and all(matches(v, inner[0]) for v in value)
    if hint is int:
        return is_integer(value)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, str | Path)
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    return True


def _is_sequence(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _positional(factory: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return []
    return [item.name for item in parameters if item.kind is not inspect.Parameter.KEYWORD_ONLY]


def _function(factory: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(factory, partial):
        factory = factory.func
    return factory


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    function = _function(factory)
    try:
        return get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError):  # an annotation that only type checkers can read
        return {}


def _argument_texts(factory: Callable[..., Any]) -> dict[str, str]:
    """The texts of a Google-style docstring's arguments, of a class also those it inherits."""
    function = _function(factory)
    sources = reversed(function.__mro__) if inspect.isclass(function) else [function]
    texts: dict[str, str] = {}
    for source in sources:
        doc = inspect.cleandoc(source.__doc__ or "")
        for title in ("Attributes", "Args"):
            for section in re.findall(rf"^{title}:\n((?:(?: {{4}}.*)?\n?)*)", doc, re.MULTILINE):
                entries = re.findall(r"^ {4}(\w+): ((?:.|\n {8})*)", section, re.MULTILINE)
                texts |= {name: _plain(text) for name, text in entries}
    return texts


def _plain(text: str) -> str:
    """Without the markup of docstrings, on one line."""
    text = re.sub(r"\[`(?:[\w.]*\.)?(\w+)`\]\[[\w.]*\]", r"\1", text)
    return " ".join(text.replace("`", "").split())
