"""The exact meta-gradient of MAML, by differentiating through the inner loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.adaptation import Adaptation, run_inner_loop
from fastmeta.metagrad._hvp import twice_differentiable
from fastmeta.metagrad.base import Episode, MetaGradient, TaskGradient


class Exact(MetaGradient):
    """The gradient of the query loss in the initialisation, all second derivatives included.

    ``(I - a H_1) ... (I - a H_K) g_q``; Finn et al. 2017, eq. 1. The same for learned rates.
    """

    separable = True
    second_order = True

    @twice_differentiable
    def task(
        self, episode: Episode, params: Sequence[Tensor], adaptation: Adaptation, record: bool
    ) -> TaskGradient:
        """See :meth:`MetaGradient.task`."""
        start = [p.detach().requires_grad_() for p in params]
        adapted = run_inner_loop(
            adaptation, lambda p: episode.support(p)[0], start, create_graph=True, record=record
        )
        loss, output = episode.query(adapted.fast)
        grads = torch.autograd.grad(loss, [*start, *adaptation.rates], allow_unused=True)
        return TaskGradient.of(grads, adapted, loss, output, record)
