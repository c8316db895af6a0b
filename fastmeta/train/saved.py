"""Runs loaded from their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmeta.train.builders import build_run, prepare
from fastmeta.train.checkpoint import find_best, load_checkpoint
from fastmeta.train.config.schema import configure
from fastmeta.train.errors import CheckpointError, ConfigError
from fastmeta.train.results import evaluate_on_test
from fastmeta.train.run import Run


@dataclass(frozen=True, kw_only=True)
class SavedRun(Run):
    """A run whose learner was loaded from a checkpoint.

    Attributes:
        checkpoint: path of the file.
        step: meta-steps taken.
    """

    checkpoint: Path
    step: int


def evaluate_run(path: str | Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluates the best learner of a run on test tasks.

    Args:
        path: the run's folder, or a checkpoint.
        changes: options that differ from the run's, such as `test_tasks`.

    Raises:
        CheckpointError: if there is no usable checkpoint.
    """
    run = load_run(path, changes)
    config = run.config
    return {
        "checkpoint": str(run.checkpoint),
        "step": run.step,
        "method": config.method,
        "dataset": config.dataset,
        "metric": run.metric.name,
        "test": evaluate_on_test(run, run.learner, config.eval_inner_steps, config.co_test),
    }


def load_run(
    path: str | Path, changes: Mapping[str, Any], splits: Sequence[str] = ("test",)
) -> SavedRun:
    """A run with its best learner.

    Args:
        path: the run's folder, or a checkpoint.
        changes: options that differ from the run's.
        splits: whose tasks are needed.

    Raises:
        CheckpointError: if there is no usable checkpoint.
        ConfigError: if a change does not fit the run, or its data cannot be loaded.
    """
    checkpoint = find_best(Path(path))
    content = load_checkpoint(checkpoint)
    config = configure(content["config"], changes)
    run = build_run(config, checkpoint.parent, prepare(config), splits=splits)
    _check_rates(content, run)
    try:
        run.learner.load_state_dict(content["learner"])
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint}: does not fit its own configuration: {error}"
        ) from error
    return SavedRun(**vars(run), checkpoint=checkpoint, step=content["step"])


def _check_rates(content: dict[str, Any], run: Run) -> None:
    """Refuses an adaptation whose learned rates are not in the checkpoint."""
    trained, needed = len(content["learner"]["rates"]), len(run.learner.adaptation.rates)
    if trained != needed:
        raise ConfigError(
            f"adaptation {run.config.adaptation!r} needs {needed} tensors of learned rates, but "
            f"this run has {trained}, of adaptation {content['config']['adaptation']!r}. Choose an "
            "adaptation with the same learned rates, or train a run with this one."
        )
