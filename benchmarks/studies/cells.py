"""Cells of a table: run once, resumed after an interruption, recorded as rows of a CSV."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import fastmeta
from benchmarks.studies.plan import PLACE, Cell, Table, config_of
from fastmeta.train import ConfigError, DivergedError, TrainConfig, evaluate_run, resume, train
from fastmeta.train._atomic_files import write_atomic
from fastmeta.train.checkpoint import (
    checkpoints,
    load_checkpoint,
    save_checkpoint,
    step_path,
)

COLUMNS = (
    *("row", "seed", "status", "metric", "mean", "ci95", "tasks", "inner_steps", "steps"),
    *("best_step", "val", "seconds", "config", "fastmeta", "torch", "date"),
)


class Results:
    """The CSV of the finished cells of a table, shared by processes.

    Args:
        path: file, which need not exist.
        order: names of the rows, in the order in which they are written.
    """

    def __init__(self, path: Path, order: list[str]) -> None:
        self.path = path
        self._order = order

    def read(self) -> dict[tuple[str, int], dict[str, str]]:
        """The finished cells, by row and seed."""
        if not self.path.exists():
            return {}
        with self.path.open(newline="") as file:
            return {(r["row"], int(r["seed"])): r for r in csv.DictReader(file)}

    def add(self, found: dict[str, Any]) -> None:
        """Adds a cell; safe if other processes do so concurrently."""
        with _locked(self.path.with_suffix(".lock")):
            known = self.read()
            known[found["row"], found["seed"]] = found
            places = {name: i for i, name in enumerate(self._order)}
            ordered = sorted(known, key=lambda k: (places.get(k[0], len(places)), k))
            text = io.StringIO()
            table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(known[key] for key in ordered)
            write_atomic(self.path, lambda file: file.write(text.getvalue().encode()))


def run_cell(
    table: Table, cell: Cell, runs: Path, stop: Callable[[], bool]
) -> dict[str, Any] | None:
    """Runs one cell, resuming from its last checkpoint if there is one.

    Args:
        table: table of the cell.
        cell: cell to run.
        runs: folder of the runs of the table.
        stop: called after each meta-step; true stops the cell there, with a checkpoint.

    Returns:
        Its row of the CSV, or ``None`` if it was stopped, is being run by another process, or
        evaluates or continues a run that is not finished.
    """
    folder = runs / f"{cell.row.of or cell.row.name}-seed{cell.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder / ".lock", wait=False):
            results = _evaluated(cell, folder) if cell.row.of else _trained(cell, folder, stop)
    except BlockingIOError:
        return None
    except DivergedError as error:
        print(f"{cell.row.name}, seed {cell.seed}: {error}", flush=True)
        results = {"status": "diverged"}
    return None if results is None else {**_stamp(table, cell, folder), **results}


def _trained(cell: Cell, folder: Path, stop: Callable[[], bool]) -> dict[str, Any] | None:
    finished = folder / "results.json"
    if cell.row.after and not checkpoints(folder) and not _continued(cell, folder):
        return None
    if finished.exists():
        results = json.loads(finished.read_text())
    elif checkpoints(folder):
        results = resume(folder, {}, stop)
    else:
        results = train(config_of(cell, folder), stop)
    if results is None:
        return None
    chosen = {name: results[name] for name in ("metric", "steps", "best_step", "seconds")}
    return {**chosen, "val": f"{results['val']['mean']:.5g}", **_score(results["test"])}


def _continued(cell: Cell, folder: Path) -> bool:
    """Begins a run with the end of another one; false if that is not finished.

    Network, optimizer and random numbers are continued; its best
    validation is that of the new part.
    """
    base = folder.with_name(f"{cell.row.after}-seed{cell.seed}")
    if not (base / "results.json").exists():
        return False
    content = load_checkpoint(checkpoints(base)[-1])
    config = config_of(cell, folder).to_dict()
    save_checkpoint(step_path(folder, content["step"]), {**content, "config": config, "best": None})
    return True


def _evaluated(cell: Cell, folder: Path) -> dict[str, Any] | None:
    if not (folder / "results.json").exists():
        return None
    results = evaluate_run(folder, cell.row.options)
    return {"metric": results["metric"], "best_step": results["step"], **_score(results["test"])}


def _score(test: dict[str, Any]) -> dict[str, Any]:
    numbers = {"mean": f"{test['mean']:.5g}", "ci95": f"{test['ci95']:.2g}"}
    return {**numbers, "tasks": test["tasks"], "inner_steps": test["inner_steps"]}


def _stamp(table: Table, cell: Cell, folder: Path) -> dict[str, Any]:
    return {
        "row": cell.row.name,
        "seed": cell.seed,
        "status": "ok",
        "config": fingerprint(table, cell),
        "fastmeta": fastmeta.build_info().version,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def fingerprint(table: Table, cell: Cell) -> str:
    """Hash of all options that determine the result of a cell, the same in every process.

    Options at their default are left out, so that a new option does not change the hash.
    """
    trained = Cell(table.rows[cell.row.of], cell.seed) if cell.row.of else cell
    defaults = {item.name: item.default for item in fields(TrainConfig)}
    kept = {
        name: value
        for name, value in config_of(trained, Path()).to_dict().items()
        if name not in PLACE and value and value != defaults[name]
    }
    if cell.row.of:
        kept["tested with"] = dict(cell.row.options)
    if cell.row.after:
        kept["after"] = fingerprint(table, Cell(table.rows[cell.row.after], cell.seed))
    return f"{zlib.crc32(json.dumps(kept, sort_keys=True).encode()):08x}"


def check_same(table: Table, cell: Cell, row: dict[str, str]) -> None:
    """Checks that a finished cell was run with the current options of the table.

    Raises:
        ConfigError: if its options were different.
    """
    now = fingerprint(table, cell)
    if row["config"] != now:
        raise ConfigError(
            f"row {cell.row.name}, seed {cell.seed} was measured with other options: expected "
            f"fingerprint {now}, got {row['config']}. Remove its line from the CSV and its run to "
            "measure it again."
        )


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
