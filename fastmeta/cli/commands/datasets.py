"""`fastmeta datasets`."""

from __future__ import annotations

import argparse

from fastmeta.cli.arguments import add_data_root
from fastmeta.cli.catalog import list_datasets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_data_root(parser)


def run(given: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    print(list_datasets(given.data_root))
    return 0
