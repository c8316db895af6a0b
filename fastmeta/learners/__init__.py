"""Meta-learners built from the three rooms."""

from fastmeta.learners.learner import Loss, MetaLearner, OptimizerFactory, StepResult
from fastmeta.learners.methods import FOMAML, GSL, MAML, METHODS, Reptile, build

__all__ = [
    "FOMAML",
    "GSL",
    "MAML",
    "METHODS",
    "Loss",
    "MetaLearner",
    "OptimizerFactory",
    "Reptile",
    "StepResult",
    "build",
]
