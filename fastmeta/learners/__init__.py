"""Meta-learners: an adaptation, a meta-gradient and an aggregation combined."""

from fastmeta.engines import Loss, StepResult
from fastmeta.learners.diagnostics import (
    compare_precision,
    compare_with_exact,
    descent_condition,
)
from fastmeta.learners.fidelity import Fidelity
from fastmeta.learners.learner import MetaLearner, OptimizerFactory
from fastmeta.learners.methods import METHODS, MethodSpec, build
from fastmeta.learners.nonfinite import NonFinite, NonFiniteError, NonFiniteGuard
from fastmeta.learners.presets import FOMAML, GSL, MAML, Reptile

__all__ = [
    "FOMAML",
    "GSL",
    "MAML",
    "METHODS",
    "Fidelity",
    "Loss",
    "MetaLearner",
    "MethodSpec",
    "NonFinite",
    "NonFiniteError",
    "NonFiniteGuard",
    "OptimizerFactory",
    "Reptile",
    "StepResult",
    "build",
    "compare_precision",
    "compare_with_exact",
    "descent_condition",
]
