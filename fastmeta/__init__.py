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
from fastmeta.allocator import keep_freed_memory
from fastmeta.co_learner import CoLearner
from fastmeta.info import BuildInfo, build_info, show_config
from fastmeta.layout import FlatLayout
from fastmeta.learners import FOMAML, GSL, MAML, MetaLearner, Reptile
from fastmeta.multitask import aggregate
from fastmeta.optim import GSLOptimizer
from fastmeta.tasks import Task, TaskBatch

__all__ = [
    "FOMAML",
    "GSL",
    "MAML",
    "BuildInfo",
    "CoLearner",
    "FlatLayout",
    "GSLOptimizer",
    "MetaLearner",
    "Reptile",
    "Task",
    "TaskBatch",
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
    "models",
    "ops",
    "optim",
    "show_config",
]
