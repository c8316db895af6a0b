"""Cost of a meta-step: time, peak memory, cosine with the exact meta-gradient."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import torch

from benchmarks._common.memory import peak_bytes
from benchmarks._common.timing import interleaved
from benchmarks.studies.plan import Cell, Row, Table, config_of
from fastmeta.learners import MetaLearner, compare_with_exact
from fastmeta.tasks import TaskBatch
from fastmeta.train.builders import build_learner, build_module, find_device
from fastmeta.train.checkpoint import BEST, load_checkpoint
from fastmeta.train.sources import task_source

COLUMNS = ("row", "milliseconds", "low", "high", "megabytes", "cosine", "threads", "torch", "date")
_BATCHES = 5


def measure_costs(table: Table, runs: Path, path: Path, seconds: float) -> None:
    """Writes the costs of all trained rows, measured in one process, to a CSV.

    Each learner has the state of the best checkpoint of its first seed, if there is one.

    Args:
        table: table with the rows.
        runs: folder of the runs of the table.
        path: CSV to write.
        seconds: time spent on timing each row.
    """
    steps, rows = {}, {}
    for row in table.rows.values():
        if row.of is None:
            learner, batches = _prepared(row, runs)
            steps[row.name] = _step(learner, batches)
            rows[row.name] = {
                "row": row.name,
                "cosine": f"{_cosine(learner, batches):.3f}",
                "megabytes": f"{peak_bytes(steps[row.name]) / 1e6:.3f}",
            }
    timings = interleaved(steps, seconds * len(steps))
    for name, timing in timings.items():
        rows[name] |= {
            "milliseconds": f"{timing.median * 1e3:.2f}",
            "low": f"{timing.low * 1e3:.2f}",
            "high": f"{timing.high * 1e3:.2f}",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
        }
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())


def _prepared(row: Row, runs: Path) -> tuple[MetaLearner, list[TaskBatch]]:
    seed = row.seeds[0]
    folder = runs / f"{row.name}-seed{seed}"
    config = config_of(Cell(row, seed), folder)
    device = find_device(config.device)
    source = task_source(config, "train", device)
    learner = build_learner(config, build_module(config, source, device))
    if (folder / BEST).exists():
        learner.load_state_dict(load_checkpoint(folder / BEST, device)["learner"])
    return learner, [source[i] for i in range(_BATCHES)]


def _cosine(learner: MetaLearner, batches: list[TaskBatch]) -> float:
    found = [compare_with_exact(learner, batch).cosine for batch in batches]
    return torch.stack(found).mean().item()


def _step(learner: MetaLearner, batches: list[TaskBatch]) -> Callable[[], object]:
    endless = cycle(batches)
    return lambda: learner.step(next(endless))
