"""`fastmeta train`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

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
    run.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="then train these methods with the same options, each in its own folder beside "
        "--out, and show all in one table",
    )
    for title, members in grouped(fields(TrainConfig)):
        add_options(parser.add_argument_group(title), members)


def run(given: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    keep_freed_memory()
    options = [read_config(given.config)] if given.config else []
    options.append(given_options(given))
    if given.resume:
        for flag, asked in (("--dry-run", given.dry_run), ("--compare", given.compare)):
            if asked:
                raise ConfigError(f"{flag} is for new runs; leave out --resume.")
        changes = {name: value for source in options for name, value in source.items()}
        runs = [resume(given.resume, changes)]
    else:
        methods = [{}, *({"method": name} for name in given.compare)]
        configs = [configure(*options, method) for method in methods]
        for config in configs:
            check_components(config)
        if given.dry_run:
            print("\n\n".join(map(as_toml, configs)))
            return 0
        runs = _train(configs, train_or_resume if given.go_on else train)
    finished = [results for results in runs if results is not None]
    if len(finished) < len(runs):
        print("fastmeta: stopped and saved; continue with --resume and the folder", file=sys.stderr)
        return INTERRUPTED
    if is_first():
        print(report(finished))
        picture = " and curves.png" if finished[0]["config"]["plots"] else ""
        folders = ", ".join(results["folder"] for results in finished)
        print(f"log, checkpoints, results.json{picture}: {folders}")
    return 0


def _train(
    configs: Sequence[TrainConfig], start: Callable[[TrainConfig], dict[str, Any] | None]
) -> list[dict[str, Any] | None]:
    """Runs one after another, up to the first that is stopped.

    The network without training is evaluated for the first only: it is the same for all.
    """
    first = start(configs[0])
    runs = [first]
    for config in configs[1:]:
        if runs[-1] is None or first is None:
            break
        folder = f"{first['folder']}-{config.method}"
        runs.append(start(replace(config, out=folder, untrained=False)))
    return runs
