"""Room 2: the meta-gradient of a task, and of a meta-batch of rows."""

from fastmeta.metagrad.base import Episode, MetaGradient, TaskGradient
from fastmeta.metagrad.exact import Exact
from fastmeta.metagrad.first_order import FirstOrder
from fastmeta.metagrad.gsl import GSL
from fastmeta.metagrad.gsl_rule import GslRule
from fastmeta.metagrad.recursion import Recursion
from fastmeta.metagrad.reptile import Reptile

METAGRADS = {
    "exact": Exact,
    "first-order": FirstOrder,
    "gsl": GSL,
    "recursion": Recursion,
    "reptile": Reptile,
}

__all__ = [
    "GSL",
    "METAGRADS",
    "Episode",
    "Exact",
    "FirstOrder",
    "GslRule",
    "MetaGradient",
    "Recursion",
    "Reptile",
    "TaskGradient",
]
