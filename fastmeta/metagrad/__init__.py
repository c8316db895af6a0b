"""Room 2: the meta-gradient of a task, and of a meta-batch of rows."""

from collections.abc import Callable

from fastmeta.metagrad.base import Episode, MetaGradient, TaskGradient
from fastmeta.metagrad.calibrated import CalibratedAHE
from fastmeta.metagrad.central_difference import CentralDifference
from fastmeta.metagrad.exact import Exact
from fastmeta.metagrad.first_order import FirstOrder
from fastmeta.metagrad.gsl import GSL
from fastmeta.metagrad.gsl_curvature import CurvatureGSL
from fastmeta.metagrad.gsl_rule import GslRule
from fastmeta.metagrad.gsl_variants import gsl_variant
from fastmeta.metagrad.implicit import Implicit
from fastmeta.metagrad.multi_step import MultiStep
from fastmeta.metagrad.recursion import Recursion
from fastmeta.metagrad.reptile import Reptile
from fastmeta.registry import Registry

METAGRADS: Registry[Callable[..., MetaGradient]] = Registry(
    "metagrad",
    {
        "central-difference": CentralDifference,
        "exact": Exact,
        "first-order": FirstOrder,
        "gsl": gsl_variant,
        "implicit": Implicit,
        "multi-step": MultiStep,
        "recursion": Recursion,
        "reptile": Reptile,
    },
)
"""Meta-gradients by name."""

__all__ = [
    "GSL",
    "METAGRADS",
    "CalibratedAHE",
    "CentralDifference",
    "CurvatureGSL",
    "Episode",
    "Exact",
    "FirstOrder",
    "GslRule",
    "Implicit",
    "MetaGradient",
    "MultiStep",
    "Recursion",
    "Reptile",
    "TaskGradient",
    "gsl_variant",
]
