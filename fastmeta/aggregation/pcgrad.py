"""PCGrad."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.aggregation.gram import GramAggregation
from fastmeta.gradients import TaskGradients


class PCGrad(GramAggregation):
    """The mean of the gradients after removing their conflicting components (gradient surgery).

    Yu et al. 2020 (arXiv 2001.06782), Algorithm 1: for every `j` in random order,
    `g_i -= <g_i, g_j> / |g_j|^2 g_j` if `<g_i, g_j> < 0`. The orders come from torch's CPU
    generator; no host sync. A zero gradient gets weight `1/T`.
    """

    on_host = False

    @override
    def weights(self, gradients: TaskGradients) -> Tensor:
        weights = super().weights(gradients)
        if gradients.finite is None:
            return weights
        return weights * (gradients.tasks / gradients.finite.sum().clamp(min=1))

    @override
    def from_gram(self, gram: Tensor, noise: float) -> Tensor:
        tasks = len(gram)
        orders = torch.rand(tasks, tasks).argsort(1).to(gram.device, non_blocking=True)
        squared_norms, own = gram.diagonal(), torch.arange(tasks, device=gram.device)
        coef = torch.eye(tasks, dtype=gram.dtype, device=gram.device)  # row i: g_i after surgery
        for others in orders.unbind(1):
            dots = (coef * gram[others]).sum(1)
            conflict = (dots < 0) & (others != own)
            projection = torch.where(conflict, dots / squared_norms[others], 0)
            coef.scatter_add_(1, others[:, None], -projection[:, None])
        return coef.mean(0)
