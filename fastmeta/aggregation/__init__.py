"""Task aggregation: from the task gradients of a meta-batch to the weights of its tasks."""

from collections.abc import Callable

from fastmeta.aggregation.agreement import GradientAgreement
from fastmeta.aggregation.aligned_mtl import AlignedMTL
from fastmeta.aggregation.base import Aggregation
from fastmeta.aggregation.cagrad import CAGrad
from fastmeta.aggregation.gram import GramAggregation
from fastmeta.aggregation.gsl import GslWeights
from fastmeta.aggregation.guarded import Guarded, guarded_by_name
from fastmeta.aggregation.imtl_g import IMTLG
from fastmeta.aggregation.log_loss import LogLoss
from fastmeta.aggregation.mean import Mean
from fastmeta.aggregation.mgda import MGDA
from fastmeta.aggregation.nash_mtl import NashMTL
from fastmeta.aggregation.pcgrad import PCGrad
from fastmeta.aggregation.spsa import SPSAWeights
from fastmeta.aggregation.upgrad import UPGrad
from fastmeta.registry import Registry

_UNGUARDED: dict[str, Callable[..., Aggregation]] = {
    "agreement": GradientAgreement,
    "aligned-mtl": AlignedMTL,
    "cagrad": CAGrad,
    "gsl": GslWeights,
    "imtl-g": IMTLG,
    "log-loss": LogLoss,
    "mean": Mean,
    "mgda": MGDA,
    "nash-mtl": NashMTL,
    "pcgrad": PCGrad,
    "spsa": SPSAWeights,
    "upgrad": UPGrad,
}

AGGREGATIONS: Registry[Callable[..., Aggregation]] = Registry(
    "aggregation", {**_UNGUARDED, "guarded": guarded_by_name(_UNGUARDED)}
)
"""Aggregations by name."""

__all__ = [
    "AGGREGATIONS",
    "IMTLG",
    "MGDA",
    "Aggregation",
    "AlignedMTL",
    "CAGrad",
    "GradientAgreement",
    "GramAggregation",
    "GslWeights",
    "Guarded",
    "LogLoss",
    "Mean",
    "NashMTL",
    "PCGrad",
    "SPSAWeights",
    "UPGrad",
]
