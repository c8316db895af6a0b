"""Starts and resumes training runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from fastmeta.data import EpisodeSampler, PrioritizedTasks
from fastmeta.train._atomic_files import remove_temporary, write_json
from fastmeta.train._interrupt import GracefulInterrupt
from fastmeta.train.builders import build_run, check_learner, prepare
from fastmeta.train.checkpoint import checkpoints, load_latest
from fastmeta.train.config.schema import TrainConfig, configure
from fastmeta.train.errors import ConfigError, require
from fastmeta.train.logs import open_logs, require_tensorboard
from fastmeta.train.results import RESULTS_NAME, finish
from fastmeta.train.run import Run
from fastmeta.train.sources import with_splits
from fastmeta.train.torchrun import process_group
from fastmeta.train.trainer import Trainer

CONFIG_NAME = "config.json"

# Options that may change when a run is resumed: they do not affect the steps already taken.
_MAY_CHANGE = {
    *("steps", "device", "threads", "data_root", "plots"),
    *("val_every", "val_tasks", "test_tasks", "eval_inner_steps"),
    *("untrained", "untrained_inner_steps", "co_test"),
    *("log", "log_every", "checkpoint_every", "keep", "non_finite"),
}


def never() -> bool:
    """The default of `stop`: only Ctrl-C stops a run."""
    return False


def train(config: TrainConfig, stop: Callable[[], bool] = never) -> dict[str, Any] | None:
    """Meta-trains in a new folder, then evaluates on test tasks.

    Args:
        config: the options of the run.
        stop: called after each meta-step; true saves the run and ends it.

    Returns:
        The results, as in `results.json`, or `None` if it was stopped by `stop` or Ctrl-C.

    Raises:
        ConfigError: if the folder already holds a run, or the data or device is not available.
        DivergedError: if the loss is no longer finite.
        MissingPackageError: if an optional package is needed and missing.
        StorageError: if a file cannot be written.
    """
    folder = _folder(config)
    if checkpoints(folder) or (folder / RESULTS_NAME).exists():
        raise ConfigError(
            f"{folder} holds a run; continue it with --resume, or choose another out."
        )
    return _run(config, folder, None, stop)


def resume(
    path: str | Path, changes: Mapping[str, Any], stop: Callable[[], bool] = never
) -> dict[str, Any] | None:
    """Continues a run exactly from its newest checkpoint.

    Args:
        path: the run's folder, or its newest checkpoint.
        changes: options that differ from the run's, such as a larger `steps`.
        stop: see [`train`][fastmeta.train.train].

    Returns:
        As [`train`][fastmeta.train.train].

    Raises:
        CheckpointError: if there is no usable checkpoint.
        ConfigError: if a changed option affects the steps already taken.
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
    """Continues the run in `config.out` if that has a checkpoint, else starts it.

    For jobs that are restarted by the same command until they are finished.

    Args:
        config: the options; see [`resume`][fastmeta.train.resume] for which may differ from those
            of an existing run.
        stop: see [`train`][fastmeta.train.train].

    Returns:
        As [`train`][fastmeta.train.train].

    Raises:
        ConfigError: if `config.out` is not given; else as [`train`][fastmeta.train.train] and
            [`resume`][fastmeta.train.resume].
    """
    if config.out is None:
        raise ConfigError("to continue a run, set out to its folder.")
    folder = _folder(config)
    if checkpoints(folder):
        return resume(folder, config.to_dict(), stop)
    return train(config, stop)


def _run(
    config: TrainConfig, folder: Path, saved: dict[str, Any] | None, stop: Callable[[], bool]
) -> dict[str, Any] | None:
    _check_packages(config)
    if saved is None:
        config = with_splits(config)
    device = prepare(config)
    with process_group(config, device) as sharding:
        run = build_run(config, folder, device, sharding)
        check_learner(config, run.learner, run.sources["train"])
        trainer = Trainer(run)
        if saved is None:  # dropout and PCGrad draw from torch's generator
            torch.manual_seed(config.seed + (0 if sharding is None else sharding.rank))
        else:
            trainer.load_state_dict(saved)
        if run.writes:
            _announce(run)
            remove_temporary(folder)
            write_json(folder / CONFIG_NAME, config.to_dict())
            if trainer.step < config.steps:  # existing results are those of a shorter run
                (folder / RESULTS_NAME).unlink(missing_ok=True)
        return finish(trainer) if _fit(trainer, stop) else None


def _announce(run: Run) -> None:
    """Says what the tasks are drawn from, and which classes of the user's own data are not used."""
    for split in ("train", "val", "test"):
        source = run.sources[split]
        if isinstance(source, PrioritizedTasks):
            source = source.source
        if isinstance(source, EpisodeSampler):
            left_out = source.left_out
            more = f"; left out as too small: {', '.join(left_out)}" if left_out else ""
            print(f"{split}: {source.dataset}{more}", file=sys.stderr)


def _fit(trainer: Trainer, stop: Callable[[], bool]) -> bool:
    run = trainer.run
    with ExitStack() as stack:
        if run.writes:
            logs = open_logs(run.config.log, run.folder, run.metric.name, trainer.history)
            trainer.logs = [stack.enter_context(closing(log)) for log in logs]
        interrupt = stack.enter_context(GracefulInterrupt())
        return trainer.fit(lambda: interrupt.requested or stop())


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
    # Before training, not after it.
    require("tqdm", "The progress bar")
    if config.plots:
        require("matplotlib", "The picture of the run (plots)")
    if config.log != "csv":
        require_tensorboard()
