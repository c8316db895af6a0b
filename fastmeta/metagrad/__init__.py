"""Meta-gradients: outer-loop gradients of each task, combined over the meta-batch."""

from collections.abc import Callable

from fastmeta.metagrad.augmented import Augmented, augmented_by_name
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.bootstrapped import Bootstrapped, bootstrapped_by_name
from fastmeta.metagrad.central_difference import CentralDifference
from fastmeta.metagrad.class_weights import ClassWeights, class_weights_by_name
from fastmeta.metagrad.exact import Exact
from fastmeta.metagrad.first_order import FirstOrder
from fastmeta.metagrad.gsl import (
    GSL,
    VARIANT_ALIASES,
    VARIANTS,
    CalibratedGSL,
    CurvatureGSL,
    ElementWeights,
    GSLCorrection,
    LayerWeights,
    gsl_variant,
)
from fastmeta.metagrad.implicit import Implicit
from fastmeta.metagrad.joint_first_order import JointFirstOrder
from fastmeta.metagrad.leap import Leap
from fastmeta.metagrad.local_moml import LocalMOML, local_moml_by_name
from fastmeta.metagrad.moml import MOML, moml_by_name
from fastmeta.metagrad.multi_step import MultiStep
from fastmeta.metagrad.recursion import Recursion
from fastmeta.metagrad.reptile import Reptile
from fastmeta.metagrad.task_losses import TaskLosses
from fastmeta.metagrad.warpgrad import WarpGrad
from fastmeta.metagrad.wrapper import Wrapper
from fastmeta.registry import Registry

_UNWEIGHTED: dict[str, Callable[..., MetaGradient]] = {
    "central-difference": CentralDifference,
    "exact": Exact,
    "first-order": FirstOrder,
    "gsl": gsl_variant,
    "implicit": Implicit,
    "joint-first-order": JointFirstOrder,
    "leap": Leap,
    "multi-step": MultiStep,
    "recursion": Recursion,
    "reptile": Reptile,
    "warpgrad": WarpGrad,
}

# Some of these do not evaluate the query loss once, at the fast weights.
_OFTEN = ("joint-first-order", "leap", "multi-step", "reptile", "warpgrad")
_ONCE = {name: make for name, make in _UNWEIGHTED.items() if name not in _OFTEN}
_WEIGHTED = {**_UNWEIGHTED, "class-weights": class_weights_by_name(_UNWEIGHTED)}

METAGRADS: Registry[Callable[..., MetaGradient]] = Registry(
    "metagrad",
    {
        **_WEIGHTED,
        "augmented": augmented_by_name(_WEIGHTED),
        "bootstrapped": bootstrapped_by_name(
            {**_ONCE, "multi-step": MultiStep, "warpgrad": WarpGrad}
        ),
        "local-moml": local_moml_by_name(_ONCE),
        "moml": moml_by_name(_ONCE),
    },
)
"""Meta-gradients by name."""

__all__ = [
    "GSL",
    "METAGRADS",
    "MOML",
    "VARIANTS",
    "VARIANT_ALIASES",
    "Augmented",
    "Bootstrapped",
    "CalibratedGSL",
    "CentralDifference",
    "ClassWeights",
    "CurvatureGSL",
    "ElementWeights",
    "Exact",
    "FirstOrder",
    "GSLCorrection",
    "Implicit",
    "JointFirstOrder",
    "LayerWeights",
    "Leap",
    "LocalMOML",
    "MetaGradient",
    "MultiStep",
    "Recursion",
    "Reptile",
    "StepContext",
    "TaskGradient",
    "TaskLosses",
    "WarpGrad",
    "Wrapper",
    "gsl_variant",
]
