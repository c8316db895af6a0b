"""`fastmeta train`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from fastmeta.backend import keep_freed_memory
from fastmeta.cli.arguments import add_options, given_options, grouped
from fastmeta.cli.catalog import method_summaries
from fastmeta.cli.dry_run import as_toml, check_components
from fastmeta.cli.main import INTERRUPTED
from fastmeta.cli.report import report
from fastmeta.train import (
    ConfigError,
    TrainConfig,
    configure,
    read_config,
    resume,
    train,
    train_or_resume,
)
from fastmeta.train.torchrun import is_first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = (
        f"methods:\n{method_summaries()}\n\n'fastmeta info NAME' lists the "
        "options of a method, component, dataset or backbone;\n'fastmeta train --dry-run' "
        "prints all options with the defaults of dataset and method."
    )
    run = parser.add_argument_group("configuration")
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
        add_options(parser.add_argument_group(title), members)


def run(given: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    keep_freed_memory()
    options = [read_config(given.config)] if given.config else []
    options.append(given_options(given))
    if given.resume:
        if given.dry_run:
            raise ConfigError("--dry-run shows the options of a new run; leave out --resume.")
        changes = {name: value for source in options for name, value in source.items()}
        results = resume(given.resume, changes)
    else:
        config = configure(*options)
        check_components(config)
        if given.dry_run:
            print(as_toml(config))
            return 0
        results = train_or_resume(config) if given.go_on else train(config)
    if results is None:
        print("fastmeta: stopped and saved; continue with --resume and the folder", file=sys.stderr)
        return INTERRUPTED
    if not is_first():
        return 0
    print(report([results]))
    picture = " and curves.png" if results["config"]["plots"] else ""
    print(f"log, checkpoints, results.json{picture}: {results['folder']}")
    return 0
