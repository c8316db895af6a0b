"""Every name of the package that the frozen cases use: all there is to adapt when one changes."""

from fastmeta import CoLearner, GSLOptimizer, MetaLearner, TaskBatch, aggregate
from fastmeta.cli import main as command_line
from fastmeta.learners import METHODS, build
from fastmeta.models import Conv4

__all__ = [
    "METHODS",
    "CoLearner",
    "Conv4",
    "GSLOptimizer",
    "MetaLearner",
    "TaskBatch",
    "aggregate",
    "build",
    "command_line",
]
