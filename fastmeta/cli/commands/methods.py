"""`fastmeta methods`."""

from __future__ import annotations

import argparse

from fastmeta.cli.catalog import list_methods


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(given: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    print(list_methods())
    return 0
