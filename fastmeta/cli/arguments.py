"""The command line's arguments; the flags of ``train`` are the fields of ``TrainConfig``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from fastmeta.train import ConfigError, TrainConfig
from fastmeta.train.config.fields import choices_of

_EVALUATE = ("data_root", "eval_inner_steps", "co_test", "test_tasks", "device", "threads")
_ADAPTATION = ("adaptation", "adaptation_options")


def make_parser() -> argparse.ArgumentParser:
    """The parser of ``fastmeta``."""
    parser = argparse.ArgumentParser(
        prog="fastmeta", description="Gradient-based meta-learning on compiled kernels."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="meta-train, then test on held-out tasks")
    train.add_argument("--config", type=Path, help="TOML, YAML or JSON file; flags override it")
    train.add_argument("--resume", type=Path, metavar="RUN", help="continue the run in this folder")
    train.add_argument(
        "--continue",
        action="store_true",
        dest="go_on",
        help="continue the run in the folder --out if there is one, such as after a restart by "
        "torchrun or a cluster; else begin it",
    )
    _add_options(train, fields(TrainConfig))
    evaluate = commands.add_parser("evaluate", help="test a trained learner on held-out tasks")
    evaluate.add_argument("run", type=Path, help="a run's folder, or a checkpoint")
    evaluate.add_argument("--json", type=Path, help="write the result here too")
    _add_options(evaluate, _options(*_EVALUATE, *_ADAPTATION))
    tune = commands.add_parser("tune-pattern", help="find the layers that need to be adapted")
    tune.add_argument("run", type=Path, help="a run's folder, or a checkpoint")
    tune.add_argument(
        "--allowed-loss",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="how much worse than with all layers: of all queries, or of the squared error",
    )
    tune.add_argument("--tasks", type=int, default=200, help="validation tasks (default: 200)")
    _add_options(tune, _options(*_EVALUATE))
    export = commands.add_parser("export", help="write a trained network for torch alone")
    export.add_argument("run", type=Path, help="a finished run's folder, or a checkpoint")
    export.add_argument("file", type=Path, help="the safetensors file to write")
    _add_options(export, _options("data_root"))
    commands.add_parser("info", help="the active backend, methods and data sets").add_argument(
        "--data-root", help="folder of the data sets; by default the one FASTMETA_DATA names"
    )
    return parser


def _options(*names: str) -> list[Field[Any]]:
    return [item for item in fields(TrainConfig) if item.name in names]


def _add_options(parser: argparse.ArgumentParser, options: Iterable[Field[Any]]) -> None:
    hints = get_type_hints(TrainConfig)
    for item in options:
        text, hint = item.metadata["help"], hints[item.name]
        flag = f"--{item.name.replace('_', '-')}"
        if get_origin(hint) is Mapping:
            flag = flag.removesuffix("s")
            parser.add_argument(
                flag, dest=item.name, action="append", metavar="KEY=VALUE", help=text
            )
            continue
        if item.default is MISSING:
            text += " (default: depends on data set and method)"
        elif item.default is not None:
            text += f" (default: {item.default})"
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text, "dest": item.name}
        if hint is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif get_origin(hint) is tuple:
            settings.update(type=int, nargs="+", metavar="N")
        else:
            choices = choices_of(hint, item.metadata)
            kind = next(iter(get_args(hint)), hint) if choices is None else str
            settings.update(type=kind, choices=choices)
            settings["metavar"] = kind.__name__.upper() if choices is None else None
        parser.add_argument(flag, **settings)


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a run that were given as flags.

    Raises:
        ConfigError: if an entry of a table is not ``key=value``.
    """
    given: dict[str, Any] = {}
    for item in fields(TrainConfig):
        value = getattr(arguments, item.name, None)
        if value is not None:
            table = item.name.endswith("_options")
            given[item.name] = dict(_entry(item.name, text) for text in value) if table else value
    return given


def _entry(name: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        flag = f"--{name.replace('_', '-').removesuffix('s')}"
        raise ConfigError(f"{flag} takes KEY=VALUE, such as eta=0.3; got {text!r}.")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
