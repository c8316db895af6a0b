"""Training runs: configuration, training loop, logs, checkpoints, evaluation and plots."""

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
from fastmeta.train.launch import resume, train, train_or_resume
from fastmeta.train.own_loop import Checkpoints
from fastmeta.train.predict import Prediction, predict_run
from fastmeta.train.run import Run
from fastmeta.train.saved import evaluate_run
from fastmeta.train.trainer import Trainer

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "ConfigError",
    "DamagedError",
    "DivergedError",
    "MissingPackageError",
    "Prediction",
    "Run",
    "StorageError",
    "TrainConfig",
    "Trainer",
    "UserError",
    "configure",
    "evaluate_run",
    "export_run",
    "predict_run",
    "read_config",
    "resume",
    "train",
    "train_or_resume",
]
