"""Runs read back: tested again, or looked into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmeta.data import TaskSource
from fastmeta.learners import MetaLearner
from fastmeta.train.builders import build_learner, build_module, metric_of, prepare, task_source
from fastmeta.train.checkpoint import find_best, load_checkpoint
from fastmeta.train.config.schema import TrainConfig, configure
from fastmeta.train.errors import CheckpointError, ConfigError
from fastmeta.train.results import on_test_tasks


@dataclass(frozen=True)
class SavedRun:
    """A run read back.

    Attributes:
        checkpoint: where it was read.
        step: meta-steps taken.
        config: its options.
        device: where the learner is.
        test: the test tasks.
        learner: trained.
    """

    checkpoint: Path
    step: int
    config: TrainConfig
    device: torch.device
    test: TaskSource
    learner: MetaLearner


def evaluate_run(path: str | Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tests the best learner of a run on held-out tasks.

    Args:
        path: the run's folder, or a checkpoint.
        changes: options that differ from the run's, such as ``test_tasks``.

    Raises:
        CheckpointError: if there is no usable checkpoint.
    """
    run = load_run(path, changes)
    config, metric = run.config, metric_of(run.config)
    steps = config.eval_inner_steps
    return {
        "checkpoint": str(run.checkpoint),
        "step": run.step,
        "method": config.method,
        "dataset": config.dataset,
        "metric": metric.name,
        "test": on_test_tasks(config, run.learner, run.test, metric, steps, config.test_head),
    }


def load_run(path: str | Path, changes: Mapping[str, Any]) -> SavedRun:
    """The best learner of a run; arguments and errors as :func:`evaluate_run`."""
    checkpoint = find_best(Path(path))
    content = load_checkpoint(checkpoint)
    config = configure(content["config"], changes)
    device = prepare(config)
    test = task_source(config, "test", device)
    learner = build_learner(config, build_module(config, test, device))
    _check_rates(content, config, learner)
    try:
        learner.load_state_dict(content["learner"])
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint}: does not fit its own configuration: {error}"
        ) from error
    return SavedRun(checkpoint, content["step"], config, device, test, learner)


def _check_rates(content: dict[str, Any], config: TrainConfig, learner: MetaLearner) -> None:
    """Refuses an adaptation whose learned rates are not in the checkpoint."""
    trained, needed = len(content["learner"]["rates"]), len(learner.adaptation.rates)
    if trained != needed:
        raise ConfigError(
            f"adaptation {config.adaptation!r} needs {needed} tensors of learned rates, but this "
            f"run has {trained}, of adaptation {content['config']['adaptation']!r}. Choose an "
            "adaptation with the same learned rates, or train a run with this one."
        )
