"""Packed per-task gradients: their layout, buffers and lazy combinations."""

from fastmeta.gradients.agreement import Agreement
from fastmeta.gradients.buffer import GradientBuffer
from fastmeta.gradients.layout import FlatLayout
from fastmeta.gradients.task_gradients import TaskGradients

__all__ = ["Agreement", "FlatLayout", "GradientBuffer", "TaskGradients"]
