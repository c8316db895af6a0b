"""The table at the end of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastmeta.evaluation import ACCURACY, METRICS


def score(results: Mapping[str, Any], which: str) -> str:
    """A score of `results.json`, as text."""
    metric, found = METRICS[results["metric"]], results[which]
    return f"{metric.show(found['mean'], found['ci95'])} over {found['tasks']} tasks"


def report(runs: Sequence[Mapping[str, Any]]) -> str:
    """Scores of runs on the same test tasks, one line each, and of their controls.

    Args:
        runs: results as of `fastmeta.train.train`, of one dataset and network.
    """
    first = runs[0]
    config = first["config"]
    lines = [f"{config['dataset']}: {first['metric']} on held-out tasks, 95 % interval"]
    for run in runs:
        time = f"trained {run['seconds']:.0f} s, {run['tasks_per_second']:.0f} tasks/s"
        lines.append(f"{_row(run, 'test', run['config']['method'])}, {time}")
    for which in ("untrained", "untrained_long"):
        if which in first:
            lines.append(_row(first, which, "untrained"))
    if first["metric"] == ACCURACY.name:
        lines.append(f"  {'chance':<32}{ACCURACY.show(1 / config['ways'])}")
    return "\n".join(lines)


def _row(results: Mapping[str, Any], which: str, title: str) -> str:
    steps = results[which]["inner_steps"]
    label = f"{title}, {steps} inner step{'s' * (steps != 1)}"
    return f"  {label:<32}{score(results, which)}"
