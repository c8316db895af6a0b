"""`fastmeta info`."""

from __future__ import annotations

import argparse

from fastmeta.backend import show_config
from fastmeta.cli.arguments import add_data_root
from fastmeta.cli.catalog import describe_name, found_datasets, list_plugins
from fastmeta.learners import METHODS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="a method, adaptation, meta-gradient, aggregation, dataset or backbone",
    )
    add_data_root(parser)


def run(given: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    if given.name is not None:
        print(describe_name(given.name))
        return 0
    show_config()
    print(f"{'methods:':<14}{', '.join(METHODS.own)}")
    print(f"{'datasets:':<14}{', '.join(found_datasets(given.data_root))}")
    for plugin in list_plugins():
        print(f"{'plug-in:':<14}{plugin}")
    return 0
