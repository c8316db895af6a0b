"""A whole run: train, test on held-out tasks, compare with no meta-training, write it all down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmeta.co_learner import Head
from fastmeta.data import TaskSource
from fastmeta.info import build_info
from fastmeta.learners import MetaLearner
from fastmeta.train.checkpoint import checkpoints, find_best, load_checkpoint, load_latest
from fastmeta.train.config import TrainConfig, configure
from fastmeta.train.errors import CheckpointError, ConfigError, require
from fastmeta.train.evaluation import evaluate
from fastmeta.train.files import remove_temporary, write_json
from fastmeta.train.interrupt import GracefulInterrupt
from fastmeta.train.logs import open_logs, require_tensorboard
from fastmeta.train.metrics import Estimate, Metric
from fastmeta.train.plots import draw
from fastmeta.train.setup import (
    build_learner,
    build_module,
    check_learner,
    find_device,
    metric_of,
    task_source,
)
from fastmeta.train.trainer import Trainer

CONFIG_NAME = "config.json"
RESULTS_NAME = "results.json"
PICTURE_NAME = "curves.png"

# What may change when a run continues: none of it changes the steps already taken.
_MAY_CHANGE = {
    *("steps", "device", "threads", "data_root", "plots"),
    *("val_every", "val_tasks", "test_tasks", "eval_inner_steps"),
    *("untrained", "untrained_inner_steps", "co_test"),
    *("log", "log_every", "checkpoint_every", "keep", "non_finite"),
}


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


def never() -> bool:
    """Nothing but Ctrl-C stops a run."""
    return False


def train(config: TrainConfig, stop: Callable[[], bool] = never) -> dict[str, Any] | None:
    """Runs a configuration in a new folder.

    Args:
        config: what to run.
        stop: asked after each meta-step; true saves the run and ends it.

    Returns:
        The results, as in ``results.json``, or ``None`` if it was stopped (as Ctrl-C does).

    Raises:
        ConfigError: if the folder holds a run already, or the data or device cannot be had.
        DivergedError: if the loss is no longer finite.
        MissingPackageError: if an optional package is needed and missing.
        StorageError: if a file cannot be written.
    """
    folder = _folder(config)
    if checkpoints(folder) or (folder / RESULTS_NAME).exists():
        raise ConfigError(f"{folder} holds a run; continue it with --resume, or name another out.")
    return _run(config, folder, None, stop)


def resume(
    path: str | Path, changes: Mapping[str, Any], stop: Callable[[], bool] = never
) -> dict[str, Any] | None:
    """Continues a run exactly where its newest checkpoint is.

    Args:
        path: the run's folder, or its newest checkpoint.
        changes: options that differ from the run's, such as a greater ``steps``.
        stop: see :func:`train`.

    Returns:
        As :func:`train`.

    Raises:
        CheckpointError: if there is no usable checkpoint.
        ConfigError: if a change would make it another run.
    """
    checkpoint, content = load_latest(Path(path))
    config = configure(content["config"], changes)
    old = content["config"]
    for name, value in config.to_dict().items():
        if name not in _MAY_CHANGE and value != old.get(name, value):
            raise ConfigError(
                f"a resumed run keeps its {name}: it has {old[name]!r}, not {value!r}. "
                "Start a new run for that."
            )
    if config.steps < content["step"]:
        raise ConfigError(f"the run has {content['step']} steps already; got steps {config.steps}.")
    return _run(config, checkpoint.parent, content, stop)


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
        "test": _test(config, run.learner, run.test, metric, steps, config.test_head),
    }


def load_run(path: str | Path, changes: Mapping[str, Any]) -> SavedRun:
    """The best learner of a run; arguments and errors as :func:`evaluate_run`."""
    checkpoint = find_best(Path(path))
    content = load_checkpoint(checkpoint)
    config = configure(content["config"], changes)
    device = _prepare(config)
    test = task_source(config, "test", device)
    learner = build_learner(config, build_module(config, test, device))
    try:
        learner.load_state_dict(content["learner"])
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint}: does not fit its own configuration: {error}"
        ) from error
    return SavedRun(checkpoint, content["step"], config, device, test, learner)


def _run(
    config: TrainConfig, folder: Path, saved: dict[str, Any] | None, stop: Callable[[], bool]
) -> dict[str, Any] | None:
    _check_packages(config)
    device = _prepare(config)
    metric = metric_of(config)
    tasks = {split: task_source(config, split, device) for split in ("train", "val", "test")}
    learner = build_learner(config, build_module(config, tasks["train"], device))
    check_learner(config, learner, tasks["train"])
    trainer = Trainer(config, learner, tasks["train"], tasks["val"], metric, folder)
    if saved is not None:
        trainer.load_state_dict(saved)
    remove_temporary(folder)
    write_json(folder / CONFIG_NAME, config.to_dict())
    with ExitStack() as stack:
        trainer.logs = [
            stack.enter_context(closing(log))
            for log in open_logs(config.log, folder, metric.name, trainer.history)
        ]
        interrupt = stack.enter_context(GracefulInterrupt())
        if not trainer.fit(lambda: interrupt.requested or stop()):
            return None
    return _finish(trainer, tasks["test"], device)


def _finish(trainer: Trainer, test: TaskSource, device: torch.device) -> dict[str, Any]:
    config, metric, learner = trainer.config, trainer.metric, trainer.learner
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
        "skipped_tasks": int(learner.containment.skipped),
        "best_step": trainer.best.step,
        "val": _estimate(trainer.best.val, config.eval_inner_steps),
        "test": _test(config, learner, test, metric, config.eval_inner_steps, config.test_head),
        **(_untrained(config, test, metric, device) if config.untrained else {}),
        "config": config.to_dict(),
    }
    write_json(trainer.folder / RESULTS_NAME, results)
    if config.plots:
        draw(trainer.folder / PICTURE_NAME, trainer.history, metric, learner, test[0], config)
    return {**results, "folder": str(trainer.folder)}


def _untrained(
    config: TrainConfig, test: TaskSource, metric: Metric, device: torch.device
) -> dict[str, Any]:
    """The same network without meta-training, also with more inner steps: the fair comparison."""
    learner = build_learner(config, build_module(config, test, device))
    steps = {"untrained": config.eval_inner_steps, "untrained_long": config.untrained_inner_steps}
    found = {n: _test(config, learner, test, metric, n) for n in set(steps.values()) if n}
    return {name: found[n] for name, n in steps.items() if n}


def _test(
    config: TrainConfig,
    learner: MetaLearner,
    test: TaskSource,
    metric: Metric,
    steps: int,
    head: Head = "main",
) -> dict[str, Any]:
    return _estimate(evaluate(learner, test, config.test_tasks, metric, steps, head), steps)


def _estimate(found: Estimate, steps: int) -> dict[str, Any]:
    return {"mean": found.mean, "ci95": found.ci95, "tasks": found.tasks, "inner_steps": steps}


def _folder(config: TrainConfig) -> Path:
    if config.out is not None:
        return Path(config.out).expanduser()
    base = Path("runs") / f"{config.dataset}-{config.method}-seed{config.seed}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _check_packages(config: TrainConfig) -> None:
    # Before the work, not after it.
    require("tqdm", "The progress bar")
    if config.plots:
        require("matplotlib", "The picture of the run (plots)")
    if config.log != "csv":
        require_tensorboard()


def _prepare(config: TrainConfig) -> torch.device:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return find_device(config.device)
