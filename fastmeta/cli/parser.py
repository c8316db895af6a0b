"""The commands of `fastmeta` and their parsers, each built when it is called.

Neither this module nor `fastmeta.cli.main` imports torch, so that `fastmeta --help` is fast.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import NoReturn

from typing_extensions import override

from fastmeta._checks import did_you_mean
from fastmeta._errors import UserError

COMMANDS = {
    "train": "meta-train, then test on held-out tasks",
    "evaluate": "test a trained learner on held-out tasks",
    "predict": "adapt a trained learner to your own examples and classify others",
    "bench": "time methods, networks and engines on this machine",
    "tune-pattern": "find the layers that need to be adapted",
    "export": "write a trained network for use without fastmeta",
    "methods": "list methods and their components",
    "datasets": "list datasets",
    "info": "show the active backend, or the options of what NAME names",
}
"""The commands by name; each is a module of `fastmeta.cli.commands`."""


class UsageError(UserError):
    """The command line has an unknown command or flag, or lacks an argument."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    @override
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line, whose `command` is a name of `COMMANDS`.

    Args:
        arguments: those of this process by default.

    Raises:
        UsageError: if a command or flag is unknown, or an argument is missing.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = next((text for text in arguments if not text.startswith("-")), None)
    if command is None or arguments[0] != command:
        _make_parser().parse_args(arguments)
    if command not in COMMANDS:
        raise UsageError(
            f"unknown command {command!r}.{did_you_mean(command, COMMANDS)} "
            f"Commands: {', '.join(COMMANDS)}."
        )
    parser = Parser(
        prog=f"fastmeta {command}",
        description=f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module_of(command).add_arguments(parser)
    given, unknown = parser.parse_known_args(arguments[1:])
    if unknown:
        flag = unknown[0].partition("=")[0]
        known = set(re.findall(r"--[\w-]+", parser.format_usage()))
        kind = "option" if flag.startswith("-") else "argument"
        raise UsageError(
            f"unknown {kind} {flag}.{did_you_mean(flag, known)} See fastmeta {command} --help."
        )
    given.command = command
    return given


def module_of(command: str) -> ModuleType:
    """The module of a command, with `add_arguments(parser)` and `run(given) -> exit status`."""
    return import_module(f"fastmeta.cli.commands.{command.replace('-', '_')}")


def _make_parser() -> Parser:
    """The parser of a command line that begins with no command."""
    parser = Parser(
        prog="fastmeta", description="Gradient-based meta-learning on compiled kernels."
    )
    text = f"fastmeta {version('fastmeta')} (torch {version('torch')})"
    parser.add_argument("--version", action="version", version=text)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary)
    return parser
