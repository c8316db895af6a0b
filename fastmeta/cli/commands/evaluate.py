"""`fastmeta evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastmeta.backend import keep_freed_memory
from fastmeta.cli.arguments import ADAPTATION, EVALUATION, add_options, given_options, options
from fastmeta.cli.report import score
from fastmeta.train import evaluate_run
from fastmeta.train._atomic_files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("run", type=Path, help="folder of a run, or a checkpoint")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    add_options(parser, options(*EVALUATION, *ADAPTATION), of_run=True)


def run(given: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    keep_freed_memory()
    results = evaluate_run(given.run, given_options(given))
    if given.json:
        write_json(given.json, results)
    print(f"{results['metric']}: {score(results, 'test')}")
    return 0
