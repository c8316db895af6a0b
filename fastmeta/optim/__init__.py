"""Drop-in optimizers for existing meta-training loops."""

from fastmeta.optim.gsl import GSLOptimizer
from fastmeta.optim.recorder import TaskRecorder
from fastmeta.optim.task_optimizer import TaskOptimizer

__all__ = ["GSLOptimizer", "TaskOptimizer", "TaskRecorder"]
