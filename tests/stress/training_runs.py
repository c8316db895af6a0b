"""Training runs in separate processes, and what must not depend on interruptions."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterator
from datetime import date
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # else every process imports it for its optimizer

import fastmeta
from fastmeta.train import configure, resume, train
from fastmeta.train.checkpoint import checkpoints, load_checkpoint

RESULTS = Path(__file__).with_name("results.md")
CHECKPOINT_EVERY = 3

_SHORT = {
    **{"meta_batch": 2, "val_tasks": 4, "test_tasks": 4, "untrained": False, "plots": False},
    **{"log_every": 1, "val_every": 5, "checkpoint_every": CHECKPOINT_EVERY, "threads": 1},
    **{"inner_steps": 2, "eval_inner_steps": 2, "lr_schedule": "cosine"},
}
# By dataset; at most a few seconds each.
RUNS: dict[str, dict[str, Any]] = {
    "sine": {**_SHORT, "steps": 60, "hidden": [8]},
    "digits": {**_SHORT, "steps": 25, "hidden": [4], "ways": 3, "queries": 3, "eval_queries": 3},
}

# Fields of a run's files that depend on the time or the place, or that the log has, too.
_CLOCK = {"seconds", "tasks_per_second"}
_ELSEWHERE = {*_CLOCK, "config", "history"}


def start(folder: Path, options: dict[str, Any], stop_after: int | None = None) -> ForkProcess:
    """Trains in a new process: resumes the run in ``folder`` if possible, else starts it.

    The process is a fork of this one, which has never trained: it has imported torch and is
    otherwise fresh.

    Args:
        folder: of the run.
        options: of a new run.
        stop_after: stop after this many steps, as Ctrl-C does.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_train, args=(folder, options, stop_after)
    )
    process.start()
    return process


def _train(folder: Path, options: dict[str, Any], stop_after: int | None) -> None:
    messages = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(messages, stream.fileno())
    stop = _after(stop_after)
    if checkpoints(folder):
        resume(folder, {}, stop)
    else:
        train(configure(options, {"out": str(folder)}), stop)


def _after(steps: int | None) -> Callable[[], bool]:
    taken = 0

    def stop() -> bool:
        nonlocal taken
        taken += 1
        return taken == steps

    return stop


def finish(process: ForkProcess, folder: Path) -> None:
    """Waits for a process to succeed, and shows its output if it fails."""
    process.join()
    if process.exitcode:
        sys.exit(
            f"{folder}: exit status {process.exitcode}\n{folder.with_suffix('.log').read_text()}"
        )


def complete_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of the log without times, and without an incomplete last line."""
    path = folder / "log.csv"
    text = path.read_text() if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [{k: v for k, v in row.items() if k not in _CLOCK} for row in csv.DictReader(lines)]


def essence(folder: Path) -> dict[str, Any]:
    """All outputs of a finished run, without times and places."""
    results = json.loads((folder / "results.json").read_text())
    paths = [checkpoints(folder)[-1], folder / "best.pt"]
    files = {path.name: load_checkpoint(path) for path in paths}
    for content in (results, *files.values()):
        for name in _ELSEWHERE & content.keys():
            del content[name]
    return {"results": results, "log": complete_rows(folder), **files}


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Paths at which two results differ bitwise."""
    if type(found) is not type(expected):
        yield where
    elif isinstance(found, dict):
        for key in found.keys() | expected.keys():
            yield from differences(found.get(key), expected.get(key), f"{where}/{key}")
    elif isinstance(found, list | tuple) and len(found) == len(expected):
        for i, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{where}/{i}")
    elif isinstance(found, torch.Tensor):
        if found.dtype != expected.dtype or not torch.equal(found, expected):
            yield where
    elif found != expected:
        yield where


def check_same(folder: Path, expected: dict[str, Any]) -> None:
    """Exits with an error if a finished run differs bitwise from what is expected."""
    if wrong := sorted(differences(essence(folder), expected)):
        sys.exit(f"{folder} differs from the uninterrupted run in {', '.join(wrong)}")


def record(command: str, result: str) -> None:
    """Writes a row into ``results.md``, in place of the last one of the same command."""
    versions = f"fastmeta {fastmeta.build_info().version}, torch {torch.__version__}"
    versions += f", Python {platform.python_version()}"
    row = f"| `{command}` | {date.today()} | {versions} | {result} |"
    lines = RESULTS.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(f"| `{command}` |")]
    RESULTS.write_text("\n".join([*kept, row]) + "\n")
