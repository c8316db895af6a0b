"""Whole training runs: configuration, loop, logs, checkpoints, test and picture."""

from fastmeta.train.config.files import read_config
from fastmeta.train.config.schema import TrainConfig, configure
from fastmeta.train.errors import (
    CheckpointError,
    ConfigError,
    DamagedError,
    DivergedError,
    MissingPackageError,
    StorageError,
    UserError,
)
from fastmeta.train.export import export_run
from fastmeta.train.run import resume, train, train_or_resume
from fastmeta.train.saved import evaluate_run
from fastmeta.train.trainer import Trainer

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DamagedError",
    "DivergedError",
    "MissingPackageError",
    "StorageError",
    "TrainConfig",
    "Trainer",
    "UserError",
    "configure",
    "evaluate_run",
    "export_run",
    "read_config",
    "resume",
    "train",
    "train_or_resume",
]
