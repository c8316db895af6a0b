"""What a finished run is worth: its best learner on the test tasks, beside the untrained one."""

from __future__ import annotations

from typing import Any

import torch

from fastmeta.backend import build_info
from fastmeta.data import TaskSource
from fastmeta.distributed import Sharding
from fastmeta.functional import Head
from fastmeta.learners import MetaLearner
from fastmeta.train._atomic_files import write_json
from fastmeta.train.builders import build_learner, build_module
from fastmeta.train.config.schema import TrainConfig
from fastmeta.train.evaluation import evaluate
from fastmeta.train.metrics import Estimate, Metric
from fastmeta.train.plots import draw
from fastmeta.train.trainer import Trainer

RESULTS_NAME = "results.json"
PICTURE_NAME = "curves.png"


def finish(trainer: Trainer, test: TaskSource, device: torch.device) -> dict[str, Any]:
    """Tests the best learner of a trained run, and writes results and picture."""
    config, metric, learner = trainer.config, trainer.metric, trainer.learner
    steps, sharding = config.eval_inner_steps, trainer.sharding
    assert trainer.best is not None, "the last step validates"
    learner.load_state_dict({**learner.state_dict(), **trainer.best.learner})
    info = build_info()
    results = {
        "fastmeta": info.version,
        "torch": torch.__version__,
        "backend": f"{info.backend}, {device.type}",
        "dataset": config.dataset,
        "method": config.method,
        "metric": metric.name,
        "steps": trainer.step,
        "seconds": round(trainer.seconds, 1),
        "tasks_per_second": round(trainer.step * config.meta_batch / trainer.seconds, 1),
        "skipped_tasks": int(learner.non_finite_guard.skipped),
        "best_step": trainer.best.step,
        "val": as_dict(trainer.best.val, steps),
        "test": on_test_tasks(config, learner, test, metric, steps, config.test_head, sharding),
        **(_untrained(config, test, metric, device, sharding) if config.untrained else {}),
        "config": config.to_dict(),
    }
    if trainer.writes:
        write_json(trainer.folder / RESULTS_NAME, results)
    if config.plots and trainer.writes:
        draw(trainer.folder / PICTURE_NAME, trainer.history, metric, learner, test[0], config)
    return {**results, "folder": str(trainer.folder)}


def _untrained(
    config: TrainConfig,
    test: TaskSource,
    metric: Metric,
    device: torch.device,
    sharding: Sharding | None,
) -> dict[str, Any]:
    """The same network without meta-training, also with more inner steps: the fair comparison."""
    learner = build_learner(config, build_module(config, test, device))
    steps = {"untrained": config.eval_inner_steps, "untrained_long": config.untrained_inner_steps}
    counts = sorted({*steps.values()} - {0})  # in one order on all ranks
    found = {n: on_test_tasks(config, learner, test, metric, n, sharding=sharding) for n in counts}
    return {name: found[n] for name, n in steps.items() if n}


def on_test_tasks(
    config: TrainConfig,
    learner: MetaLearner,
    test: TaskSource,
    metric: Metric,
    steps: int,
    head: Head = "main",
    sharding: Sharding | None = None,
) -> dict[str, Any]:
    """The score on the test tasks of ``config`` after ``steps`` inner steps."""
    found = evaluate(learner, test, config.test_tasks, metric, steps, head, sharding)
    return as_dict(found, steps)


def as_dict(found: Estimate, steps: int) -> dict[str, Any]:
    """An estimate as plain values."""
    return {"mean": found.mean, "ci95": found.ci95, "tasks": found.tasks, "inner_steps": steps}
