"""`fastmeta export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastmeta.cli.arguments import add_options, given_options, options
from fastmeta.train import export_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("run", type=Path, help="folder of a finished run, or a checkpoint")
    parser.add_argument("file", type=Path, help="the safetensors file to write")
    add_options(parser, options("data_root"), of_run=True)


def run(given: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    print(f"written: {export_run(given.run, given.file, given_options(given))}")
    return 0
