"""The commands of `fastmeta`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from fastmeta.backend import keep_freed_memory, show_config
from fastmeta.cli.arguments import given_options, parse
from fastmeta.cli.catalog import (
    describe_name,
    found_datasets,
    list_datasets,
    list_methods,
    list_plugins,
)
from fastmeta.cli.dry_run import as_toml, check_components
from fastmeta.learners import METHODS
from fastmeta.registry import PluginError
from fastmeta.train import (
    ConfigError,
    UserError,
    configure,
    evaluate_run,
    export_run,
    read_config,
    resume,
    train,
    train_or_resume,
)
from fastmeta.train._atomic_files import write_json
from fastmeta.train.metrics import ACCURACY, MSE
from fastmeta.train.torchrun import is_first
from fastmeta.tuning import tune_run

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit status: 0, 2 for errors that the user can fix, 130 after Ctrl-C.
    """
    commands = {
        "train": _train,
        "evaluate": _evaluate,
        "tune-pattern": _tune_pattern,
        "export": _export,
        "methods": _methods,
        "datasets": _datasets,
        "info": _info,
    }
    try:
        given = parse(arguments)
        keep_freed_memory()
        return commands[given.command](given)
    except (UserError, PluginError) as error:
        print(f"fastmeta: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USER_ERROR
    except KeyboardInterrupt:
        print("fastmeta: aborted", file=sys.stderr)
        return INTERRUPTED


def _train(given: argparse.Namespace) -> int:
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
    print(_report(results))
    picture = " and curves.png" if results["config"]["plots"] else ""
    print(f"log, checkpoints, results.json{picture}: {results['folder']}")
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    results = evaluate_run(given.run, given_options(given))
    if given.json:
        write_json(given.json, results)
    print(f"{results['metric']}: {_score(results, 'test')}")
    return 0


def _tune_pattern(given: argparse.Namespace) -> int:
    options = given_options(given)
    print(tune_run(given.run, options, allowed_loss=given.allowed_loss, tasks=given.tasks))
    return 0


def _export(given: argparse.Namespace) -> int:
    print(f"written: {export_run(given.run, given.file, given_options(given))}")
    return 0


def _methods(given: argparse.Namespace) -> int:
    print(list_methods())
    return 0


def _datasets(given: argparse.Namespace) -> int:
    print(list_datasets(given.data_root))
    return 0


def _info(given: argparse.Namespace) -> int:
    if given.name is not None:
        print(describe_name(given.name))
        return 0
    show_config()
    print(f"{'methods:':<14}{', '.join(METHODS.own)}")
    print(f"{'datasets:':<14}{', '.join(found_datasets(given.data_root))}")
    for plugin in list_plugins():
        print(f"{'plug-in:':<14}{plugin}")
    return 0


def _score(results: dict[str, Any], which: str) -> str:
    metric = ACCURACY if results["metric"] == ACCURACY.name else MSE
    found = results[which]
    return f"{metric.show(found['mean'], found['ci95'])} over {found['tasks']} tasks"


def _report(results: dict[str, Any]) -> str:
    config = results["config"]
    titles = {"test": config["method"], "untrained": "untrained", "untrained_long": "untrained"}
    rows = [
        f"  {title}, {results[which]['inner_steps']} inner steps".ljust(34) + _score(results, which)
        for which, title in titles.items()
        if which in results
    ]
    if results["metric"] == ACCURACY.name:
        rows.append("  chance".ljust(34) + ACCURACY.show(1 / config["ways"]))
    time = f"{results['seconds']:.0f} s, {results['tasks_per_second']:.0f} tasks/s"
    return "\n".join(
        [
            f"{config['dataset']}: {results['metric']} on held-out tasks, 95 % interval",
            *rows,
            f"  {'training':<32}{time}",
        ]
    )
