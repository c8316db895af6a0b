"""`fastmeta tune-pattern`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastmeta.backend import keep_freed_memory
from fastmeta.cli.arguments import EVALUATION, add_options, given_options, options
from fastmeta.tuning import tune_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("run", type=Path, help="folder of a run, or a checkpoint")
    parser.add_argument(
        "--allowed-loss",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="accepted loss against adapting all layers, in percent of the queries or of the "
        "squared error (default: 1)",
    )
    parser.add_argument(
        "--tasks", type=int, default=200, metavar="N", help="validation tasks (default: 200)"
    )
    add_options(parser, options(*EVALUATION), of_run=True)


def run(given: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    keep_freed_memory()
    changes = given_options(given)
    print(tune_run(given.run, changes, allowed_loss=given.allowed_loss, tasks=given.tasks))
    return 0
