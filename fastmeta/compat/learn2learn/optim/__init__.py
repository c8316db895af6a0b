"""Differentiable updates of parameters."""

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
from fastmeta.compat.missing import missing

__all__ = [
    "DifferentiableSGD",
    "MetaCurvatureTransform",
    "ModuleTransform",
    "ParameterUpdate",
    "ReshapedTransform",
    "Transform",
    "transforms",
]

__getattr__ = missing(
    __name__,
    {
        **transforms.NOT_HERE,
        "LearnableOptimizer": "compute updates with ParameterUpdate and apply update_module.",
    },
)
