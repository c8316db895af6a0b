"""Meta-learners built from the three rooms."""

from fastmeta.engines import Loss, StepResult
from fastmeta.learners.descent import descent_condition
from fastmeta.learners.learner import MetaLearner, OptimizerFactory
from fastmeta.learners.methods import FOMAML, GSL, MAML, METHODS, Reptile, Words, build

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
    "Words",
    "build",
    "descent_condition",
]
