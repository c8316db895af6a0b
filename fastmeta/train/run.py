"""A whole run: train, test on held-out tasks, compare with no meta-training, write it all down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from fastmeta.distributed import ShardedSource, Sharding
from fastmeta.train._atomic_files import remove_temporary, write_json
from fastmeta.train._interrupt import GracefulInterrupt
from fastmeta.train.builders import (
    build_learner,
    build_module,
    check_learner,
    metric_of,
    prepare,
    task_source,
)
from fastmeta.train.checkpoint import checkpoints, load_latest
from fastmeta.train.config.schema import TrainConfig, configure
from fastmeta.train.errors import ConfigError, require
from fastmeta.train.logs import open_logs, require_tensorboard
from fastmeta.train.results import RESULTS_NAME, finish
from fastmeta.train.torchrun import joined
from fastmeta.train.trainer import Trainer

CONFIG_NAME = "config.json"

# What may change when a run continues: none of it changes the steps already taken.
_MAY_CHANGE = {
    *("steps", "device", "threads", "data_root", "plots"),
    *("val_every", "val_tasks", "test_tasks", "eval_inner_steps"),
    *("untrained", "untrained_inner_steps", "co_test"),
    *("log", "log_every", "checkpoint_every", "keep", "non_finite"),
}


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


def train_or_resume(config: TrainConfig, stop: Callable[[], bool] = never) -> dict[str, Any] | None:
    """Continues the run in ``config.out`` if it has a checkpoint there, else begins it.

    What is to be started again and again by the same command, until it is finished, starts so.

    Args:
        config: what to run; see :func:`resume` for what may differ from the run that is there.
        stop: see :func:`train`.

    Returns:
        As :func:`train`.

    Raises:
        ConfigError: if ``config.out`` is not given; else as :func:`train` and :func:`resume`.
    """
    if config.out is None:
        raise ConfigError("to continue a run, name its folder with out.")
    folder = _folder(config)
    if checkpoints(folder):
        return resume(folder, config.to_dict(), stop)
    return train(config, stop)


def _run(
    config: TrainConfig, folder: Path, saved: dict[str, Any] | None, stop: Callable[[], bool]
) -> dict[str, Any] | None:
    _check_packages(config)
    device = prepare(config)
    with joined(config, device) as sharding:
        return _run_here(config, folder, saved, stop, device, sharding)


def _run_here(
    config: TrainConfig,
    folder: Path,
    saved: dict[str, Any] | None,
    stop: Callable[[], bool],
    device: torch.device,
    sharding: Sharding | None,
) -> dict[str, Any] | None:
    metric = metric_of(config)
    tasks = {split: task_source(config, split, device) for split in ("train", "val", "test")}
    module = build_module(config, tasks["train"], device)
    if sharding is not None:
        tasks["train"] = ShardedSource(tasks["train"], sharding)
    learner = build_learner(config, module, sharding)
    check_learner(config, learner, tasks["train"])
    trainer = Trainer(config, learner, tasks["train"], tasks["val"], metric, folder, sharding)
    if saved is not None:
        trainer.load_state_dict(saved)
    if trainer.writes:
        remove_temporary(folder)
        write_json(folder / CONFIG_NAME, config.to_dict())
        if trainer.step < config.steps:  # results there were a shorter run's
            (folder / RESULTS_NAME).unlink(missing_ok=True)
    with ExitStack() as stack:
        if trainer.writes:
            logs = open_logs(config.log, folder, metric.name, trainer.history)
            trainer.logs = [stack.enter_context(closing(log)) for log in logs]
        interrupt = stack.enter_context(GracefulInterrupt())
        if not trainer.fit(lambda: interrupt.requested or stop()):
            return None
    return finish(trainer, tasks["test"], device)


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
