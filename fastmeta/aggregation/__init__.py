"""Room 3: task aggregation, from the rows of a meta-batch to the weights of its tasks."""

from fastmeta.aggregation.agreement import GradientAgreement
from fastmeta.aggregation.base import Aggregation
from fastmeta.aggregation.gsl import GslWeights
from fastmeta.aggregation.mean import Mean

AGGREGATIONS = {"agreement": GradientAgreement, "gsl": GslWeights, "mean": Mean}

__all__ = ["AGGREGATIONS", "Aggregation", "GradientAgreement", "GslWeights", "Mean"]
