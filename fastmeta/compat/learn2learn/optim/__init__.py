"""Differentiable parameter updates."""

from fastmeta.compat.learn2learn.optim import transforms
from fastmeta.compat.learn2learn.optim.parameter_update import (
    DifferentiableSGD,
    ParameterUpdate,
    Transform,
)
from fastmeta.compat.learn2learn.optim.transforms import (
    MetaCurvatureTransform,
    ModuleTransform,
    ReshapedTransform,
)

__all__ = [
    "DifferentiableSGD",
    "MetaCurvatureTransform",
    "ModuleTransform",
    "ParameterUpdate",
    "ReshapedTransform",
    "Transform",
    "transforms",
]
