"""Search for a Lambda pattern of a trained run, and its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmeta.evaluation import estimate
from fastmeta.train._atomic_files import write_json
from fastmeta.train.errors import ConfigError, require
from fastmeta.train.run import Run
from fastmeta.train.saved import load_run
from fastmeta.tuning.report import ROLES, Search, draw, table, write_csv
from fastmeta.tuning.search import TunedPattern, tune_pattern, with_pattern

CSV_NAME = "patterns.csv"
JSON_NAME = "patterns.json"
PICTURE_NAME = "pareto.png"


def tune_run(
    path: str | Path, changes: Mapping[str, Any], *, allowed_loss: float = 1.0, tasks: int = 200
) -> str:
    """Finds a pattern for the best learner of a run, and evaluates it on test tasks.

    This is done for the inner steps of evaluation and for a single one. Writes `patterns.csv`,
    `patterns.json` and `pareto.png` into the run's folder.

    Args:
        path: the run's folder, or a checkpoint.
        changes: options that differ from the run's, such as `test_tasks`.
        allowed_loss: see [`fastmeta.tuning.tune_pattern`][].
        tasks: validation tasks.

    Returns:
        The table, as text.

    Raises:
        CheckpointError: if there is no usable checkpoint.
        ConfigError: if a number is too small.
        MissingPackageError: if matplotlib is missing.
    """
    require("matplotlib", "The picture of the patterns")
    run = load_run(path, changes, splits=("test", "val"))
    config, metric = run.config, run.metric
    searches = []
    for steps in dict.fromkeys((config.eval_inner_steps, 1)):
        try:
            tuned = tune_pattern(
                run.learner, run.sources["val"], tasks, steps, allowed_loss, metric, quiet=False
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        searches.append(_tested(tuned, run))
    content = {
        "checkpoint": str(run.checkpoint),
        "dataset": config.dataset,
        "method": config.method,
        "metric": metric.name,
        "allowed_loss": allowed_loss,
        "searches": [search.summary() for search in searches],
    }
    write_json(run.folder / JSON_NAME, content)
    write_csv(run.folder / CSV_NAME, searches, metric)
    draw(run.folder / PICTURE_NAME, searches, metric)
    return table(searches, metric)


def _tested(tuned: TunedPattern, run: Run) -> Search:
    patterns = dict.fromkeys(getattr(tuned, role).pattern for role in ROLES)
    scores = {
        p: run.scores(
            "test",
            learner=with_pattern(run.learner, p),
            steps=tuned.steps,
            what=f"test of pattern {p}",
        ).double()
        for p in patterns
    }
    full = scores[tuned.full.pattern]
    return Search(
        tuned,
        test={p: estimate(s) for p, s in scores.items()},
        change={p: estimate(s - full) for p, s in scores.items()},
    )
