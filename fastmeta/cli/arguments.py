"""Flags of the command line: the fields of `TrainConfig`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastmeta.train import ConfigError, TrainConfig
from fastmeta.train.config.fields import choices_of

# The groups of options in --help, by their first field: they follow the order of the fields.
GROUPS = {
    "dataset": "data",
    "method": "method",
    "ways": "tasks",
    "inner_lr": "inner loop",
    "steps": "outer loop",
    "backbone": "network",
    "engine": "execution",
    "out": "run folder, validation and logs",
}

EVALUATION = ("data_root", "eval_inner_steps", "co_test", "test_tasks", "device", "threads")
_METAVARS = {"data_root": "PATH", "out": "PATH", "device": "DEVICE"}
ADAPTATION = ("adaptation", "adaptation_options")


def grouped(members: Iterable[Field[Any]]) -> Iterable[tuple[str, list[Field[Any]]]]:
    """The fields of a configuration by `GROUPS`."""
    groups: list[tuple[str, list[Field[Any]]]] = []
    for item in members:
        if item.name in GROUPS:
            groups.append((GROUPS[item.name], []))
        groups[-1][1].append(item)
    return groups


def options(*names: str) -> list[Field[Any]]:
    """The fields of `TrainConfig` with these names."""
    return [item for item in fields(TrainConfig) if item.name in names]


def _flag(name: str) -> str:
    """The flag of an option; of a table it sets one entry, so that its name is in the singular."""
    singular = name.removesuffix("s") if _is_table(name) else name
    return f"--{singular.replace('_', '-')}"


def _is_table(name: str) -> bool:
    return name.endswith("_options")


def add_options(
    parser: argparse._ActionsContainer, members: Iterable[Field[Any]], of_run: bool = False
) -> None:
    """Adds a flag for each field.

    Args:
        parser: of a command, or a group of it.
        members: fields of `TrainConfig`.
        of_run: whether the defaults are those of an existing run.
    """
    hints = get_type_hints(TrainConfig)
    for item in members:
        hint = hints[item.name]
        choices = choices_of(hint, item.metadata)
        default = _default(item, of_run)
        settings: dict[str, Any] = {
            "dest": item.name,
            "default": argparse.SUPPRESS,
            "help": f"{item.metadata['help']}{default}",
        }
        if _is_table(item.name):
            settings |= {"action": "append", "metavar": "KEY=VALUE"}
        elif hint is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif get_origin(hint) is tuple:
            settings |= {"nargs": "+", "metavar": "N"}
        elif choices is None:
            settings["metavar"] = _METAVARS.get(item.name) or _scalar(hint).__name__.upper()
        elif isinstance(choices, tuple):
            settings["metavar"] = f"{{{','.join(choices)}}}"
        else:  # the names of a registry, too many for the usage
            settings["metavar"] = "NAME"
            settings["help"] = f"{item.metadata['help']}: {', '.join(choices)}{default}"
        parser.add_argument(_flag(item.name), **settings)


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of commands that list datasets."""
    parser.add_argument(
        "--data-root", help="folder of the datasets (default: $FASTMETA_DATA)", metavar="PATH"
    )


def _default(item: Field[Any], of_run: bool) -> str:
    if of_run:
        return " (default: as in the run)"
    if item.default is MISSING:
        return "" if _is_table(item.name) else " (default: see --dry-run)"
    return "" if item.default is None else f" (default: {item.default})"


def _scalar(hint: Any) -> type:
    """The type of a number or string, which may be optional or one of several literals."""
    if get_origin(hint) is Literal:
        return str
    kind: type = next(iter(get_args(hint)), hint)
    return kind


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a run that were given as flags.

    Numbers are converted; the configuration refuses what is no number.

    Raises:
        ConfigError: if an entry of a table is not `key=value`.
    """
    hints = get_type_hints(TrainConfig)
    given: dict[str, Any] = {}
    for item in fields(TrainConfig):
        value = getattr(arguments, item.name, None)
        if value is None:
            continue
        hint = hints[item.name]
        if get_origin(hint) is Mapping:
            given[item.name] = dict(_entry(item.name, text) for text in value)
        elif get_origin(hint) is tuple:
            given[item.name] = [_converted(int, text) for text in value]
        else:
            given[item.name] = value if hint is bool else _converted(_scalar(hint), value)
    return given


def _converted(kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        return text


def _entry(name: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{_flag(name)} takes KEY=VALUE, such as eta=0.3; got {text!r}.")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
