"""Fast gradient-based meta-learning for PyTorch, on compiled kernels."""

from fastmeta import (
    adaptation,
    aggregation,
    data,
    distributed,
    engines,
    learners,
    metagrad,
    models,
    ops,
    optim,
)
from fastmeta.aggregation.multitask import aggregate
from fastmeta.backend import BuildInfo, build_info, keep_freed_memory, show_config
from fastmeta.functional import CoLearner, model_loss
from fastmeta.gradients import FlatLayout
from fastmeta.learners import FOMAML, GSL, MAML, MetaLearner, Reptile
from fastmeta.optim import GSLOptimizer, TaskOptimizer
from fastmeta.tasks import RaggedTaskBatch, Task, TaskBatch
from fastmeta.trajectory import metagradient

__all__ = [
    "FOMAML",
    "GSL",
    "MAML",
    "BuildInfo",
    "CoLearner",
    "FlatLayout",
    "GSLOptimizer",
    "MetaLearner",
    "RaggedTaskBatch",
    "Reptile",
    "Task",
    "TaskBatch",
    "TaskOptimizer",
    "adaptation",
    "aggregate",
    "aggregation",
    "build_info",
    "data",
    "distributed",
    "engines",
    "keep_freed_memory",
    "learners",
    "metagrad",
    "metagradient",
    "model_loss",
    "models",
    "ops",
    "optim",
    "show_config",
]
