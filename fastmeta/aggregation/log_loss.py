"""Weights of the mean of log losses."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_positive
from fastmeta.aggregation.base import Aggregation
from fastmeta.gradients import TaskGradients
from fastmeta.reference import accumulation_dtype


class LogLoss(Aggregation):
    """Weights in proportion to 1 / loss, as in the gradient of the mean of the log losses.

    `w_i = (1 / l_i) / sum_j (1 / l_j)` of the query losses `l`: tasks with a small loss count more.
    What [`SPSAWeights`][fastmeta.aggregation.SPSAWeights] approximate, whose objective is smallest
    for weights in proportion to `1 / l_i`. A factor common to all losses changes nothing.

    Args:
        floor: smaller losses, and negative ones, count as this number; positive.

    Raises:
        ValueError: if `floor` is not a positive number.
    """

    needs_losses = True

    def __init__(self, floor: float = 1e-6) -> None:
        check_positive("floor", floor)
        self.floor = floor

    @override
    def weights(self, gradients: TaskGradients) -> Tensor:
        losses = gradients.losses.to(accumulation_dtype(gradients.outer.dtype))
        inverse = 1 / losses.clamp_min(self.floor)
        if gradients.finite is not None:
            inverse = torch.where(gradients.finite, inverse, 0)
        return inverse / inverse.sum().clamp_min(torch.finfo(inverse.dtype).tiny)
