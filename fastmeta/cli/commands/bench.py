"""`fastmeta bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastmeta.backend import keep_freed_memory
from fastmeta.cli.arguments import add_options, given_options, options
from fastmeta.engines import ENGINES
from fastmeta.train import ConfigError
from fastmeta.train._atomic_files import write_json
from fastmeta.tuning import bench

_OPTIONS = (
    *("dataset", "data_root", "data_options", "ways", "shots", "queries", "meta_batch"),
    *("inner_steps", "hidden", "downsample", "device", "threads"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = (
        "'speed' is the ratio to plain autograd, a loop over the tasks in PyTorch: MAML for "
        "methods with\nsecond derivatives, else first-order MAML. 'floor' is the time of matrix "
        "products with as many multiplications,\nrelative to the time of the row. 'MB' is the peak "
        "of torch's allocations in a meta-step."
    )
    parser.add_argument(
        "--method",
        nargs="+",
        default=["gsl", "fomaml", "maml"],
        metavar="NAME",
        help="methods (default: gsl fomaml maml)",
    )
    parser.add_argument(
        "--backbone",
        nargs="+",
        default=[],
        metavar="NAME",
        help="networks (default: the dataset's)",
    )
    parser.add_argument(
        "--engine",
        nargs="+",
        default=["auto"],
        metavar="NAME",
        help=f"engines, of {', '.join(ENGINES)} (default: auto)",
    )
    parser.add_argument(
        "--rounds", type=int, default=9, metavar="N", help="how often to time each (default: 9)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    add_options(parser.add_argument_group("tasks and execution"), options(*_OPTIONS))


def run(given: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    if given.rounds < 1:
        raise ConfigError(f"--rounds must be at least 1; got {given.rounds}.")
    keep_freed_memory()
    chosen = (given.method, given.backbone, given.engine)
    # These are lists here, and one of each in a configuration.
    del given.method, given.backbone, given.engine
    found = bench(given_options(given), *chosen, rounds=given.rounds, quiet=False)
    if given.json:
        write_json(given.json, found.to_dict())
    print(found)
    return 0
