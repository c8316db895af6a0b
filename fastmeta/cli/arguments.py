"""The arguments of the command line; the flags of `train` are the fields of `TrainConfig`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import torch
from typing_extensions import override

from fastmeta._checks import did_you_mean
from fastmeta.cli.catalog import method_summaries
from fastmeta.train import ConfigError, TrainConfig, UserError
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

_EVALUATE = ("data_root", "eval_inner_steps", "co_test", "test_tasks", "device", "threads")
_METAVARS = {"data_root": "PATH", "out": "PATH", "device": "DEVICE"}
_ADAPTATION = ("adaptation", "adaptation_options")


class UsageError(UserError):
    """The command line has an unknown command or flag, or lacks an argument."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage.

    Attributes:
        commands: the parsers of its commands by name.
    """

    commands: Mapping[str, argparse.ArgumentParser]

    @override
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line.

    Args:
        arguments: those of this process by default.

    Raises:
        UsageError: if a command or flag is unknown, or an argument is missing.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    commands = parser.commands
    command = next((text for text in arguments if not text.startswith("-")), None)
    if command is not None and command not in commands:
        raise UsageError(
            f"unknown command {command!r}.{did_you_mean(command, commands)} "
            f"Commands: {', '.join(commands)}."
        )
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = unknown[0].partition("=")[0]
        known = set(re.findall(r"--[\w-]+", commands[given.command].format_usage()))
        kind = "option" if flag.startswith("-") else "argument"
        raise UsageError(
            f"unknown {kind} {flag}.{did_you_mean(flag, known)} "
            f"See fastmeta {given.command} --help."
        )
    return given


def make_parser() -> _Parser:
    """The parser of `fastmeta`; `parse` explains its errors better."""
    parser = _Parser(
        prog="fastmeta", description="Gradient-based meta-learning on compiled kernels."
    )
    text = f"fastmeta {version('fastmeta')} (torch {torch.__version__})"
    parser.add_argument("--version", action="version", version=text)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(
        commands.add_parser(
            "train",
            help="meta-train, then test on held-out tasks",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"methods:\n{method_summaries()}\n\n'fastmeta info NAME' lists the "
            "options of a method, component, dataset or backbone;\n'fastmeta train --dry-run' "
            "prints all options with the defaults of dataset and method.",
        )
    )
    evaluate = commands.add_parser("evaluate", help="test a trained learner on held-out tasks")
    evaluate.add_argument("run", type=Path, help="folder of a run, or a checkpoint")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    _add_options(evaluate, _options(*_EVALUATE, *_ADAPTATION), of_run=True)
    tune = commands.add_parser("tune-pattern", help="find the layers that need to be adapted")
    tune.add_argument("run", type=Path, help="folder of a run, or a checkpoint")
    tune.add_argument(
        "--allowed-loss",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="accepted loss against adapting all layers, in percent of the queries or of the "
        "squared error (default: 1)",
    )
    tune.add_argument(
        "--tasks", type=int, default=200, metavar="N", help="validation tasks (default: 200)"
    )
    _add_options(tune, _options(*_EVALUATE), of_run=True)
    export = commands.add_parser("export", help="write a trained network for use without fastmeta")
    export.add_argument("run", type=Path, help="folder of a finished run, or a checkpoint")
    export.add_argument("file", type=Path, help="the safetensors file to write")
    _add_options(export, _options("data_root"), of_run=True)
    commands.add_parser("methods", help="list methods and their components")
    datasets = commands.add_parser("datasets", help="list datasets")
    info = commands.add_parser(
        "info", help="show the active backend, or the options of what NAME names"
    )
    info.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="a method, adaptation, meta-gradient, aggregation, dataset or backbone",
    )
    for lists in (datasets, info):
        lists.add_argument(
            "--data-root", help="folder of the datasets (default: $FASTMETA_DATA)", metavar="PATH"
        )
    parser.commands = commands.choices
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
    run = train.add_argument_group("configuration")
    run.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML, YAML or JSON file; flags override it"
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="check the options, print the resolved configuration as TOML and exit",
    )
    run.add_argument("--resume", type=Path, metavar="RUN", help="continue the run in this folder")
    run.add_argument(
        "--continue",
        action="store_true",
        dest="go_on",
        help="continue the run in the folder --out if there is one, else start it; for commands "
        "that torchrun or a cluster restarts",
    )
    for title, members in grouped(fields(TrainConfig)):
        _add_options(train.add_argument_group(title), members)


def grouped(options: Iterable[Field[Any]]) -> Iterable[tuple[str, list[Field[Any]]]]:
    """The fields of a configuration by `GROUPS`."""
    groups: list[tuple[str, list[Field[Any]]]] = []
    for item in options:
        if item.name in GROUPS:
            groups.append((GROUPS[item.name], []))
        groups[-1][1].append(item)
    return groups


def _options(*names: str) -> list[Field[Any]]:
    return [item for item in fields(TrainConfig) if item.name in names]


def _flag(name: str) -> str:
    """The flag of an option; of a table it sets one entry, so that its name is in the singular."""
    singular = name.removesuffix("s") if _is_table(name) else name
    return f"--{singular.replace('_', '-')}"


def _is_table(name: str) -> bool:
    return name.endswith("_options")


def _add_options(
    parser: argparse._ActionsContainer, options: Iterable[Field[Any]], of_run: bool = False
) -> None:
    hints = get_type_hints(TrainConfig)
    for item in options:
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
