"""Drop-in optimizers for existing meta-training loops, and look-ahead in ordinary ones."""

from fastmeta.optim.ahead import look_ahead
from fastmeta.optim.gsl import GSLOptimizer
from fastmeta.optim.recorder import TaskRecorder
from fastmeta.optim.task_optimizer import TaskOptimizer

__all__ = ["GSLOptimizer", "TaskOptimizer", "TaskRecorder", "look_ahead"]
