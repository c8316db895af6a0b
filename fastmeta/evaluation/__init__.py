"""Evaluation of learners: scores per task, their mean and its confidence interval."""

from fastmeta.evaluation.metrics import ACCURACY, METRICS, MSE, PSNR, Estimate, Metric, estimate
from fastmeta.evaluation.scores import Evaluation, evaluate

__all__ = [
    "ACCURACY",
    "METRICS",
    "MSE",
    "PSNR",
    "Estimate",
    "Evaluation",
    "Metric",
    "estimate",
    "evaluate",
]
