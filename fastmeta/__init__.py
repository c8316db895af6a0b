"""Fast gradient-based meta-learning for PyTorch, on compiled kernels."""

from fastmeta import ops
from fastmeta.info import BuildInfo, build_info, show_config
from fastmeta.layout import FlatLayout
from fastmeta.tasks import Task, TaskBatch

__all__ = ["BuildInfo", "FlatLayout", "Task", "TaskBatch", "build_info", "ops", "show_config"]
