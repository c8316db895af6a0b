"""Meta-learners built from the three rooms."""

from fastmeta.engines import Loss, StepResult
from fastmeta.learners.containment import Containment, NonFinite, NonFiniteError
from fastmeta.learners.descent import descent_condition
from fastmeta.learners.fidelity import Fidelity, against_exact
from fastmeta.learners.learner import MetaLearner, OptimizerFactory
from fastmeta.learners.methods import FOMAML, GSL, MAML, METHODS, Reptile, Words, build, words_of

__all__ = [
    "FOMAML",
    "GSL",
    "MAML",
    "METHODS",
    "Containment",
    "Fidelity",
    "Loss",
    "MetaLearner",
    "NonFinite",
    "NonFiniteError",
    "OptimizerFactory",
    "Reptile",
    "StepResult",
    "Words",
    "against_exact",
    "build",
    "descent_condition",
    "words_of",
]
