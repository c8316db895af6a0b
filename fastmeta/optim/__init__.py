"""Drop-in optimizers for existing meta-training loops."""

from fastmeta.optim.gsl import GSLOptimizer
from fastmeta.optim.recorder import TaskRecorder

__all__ = ["GSLOptimizer", "TaskRecorder"]
