"""The first-order meta-gradient of FOMAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.adaptation import Adaptation
from fastmeta.metagrad.base import Episode, MetaGradient, TaskGradient, mean_grads


class FirstOrder(MetaGradient):
    """The query gradient at the fast weights: MAML without its second derivatives.

    Finn et al. 2017, section 5.2; Nichol et al. 2018, "On First-Order Meta-Learning Algorithms".
    """

    def task(
        self, episode: Episode, params: Sequence[Tensor], adaptation: Adaptation, record: bool
    ) -> TaskGradient:
        """See :meth:`MetaGradient.task`."""
        adapted = adaptation.adapt(lambda p: episode.support(p)[0], params, record=record)
        loss, output = episode.query(adapted.fast)
        grads = torch.autograd.grad(loss, adapted.fast, allow_unused=True)
        return TaskGradient(
            query=grads,
            inner=mean_grads(adapted.inner_grads) if record else None,
            support_loss=adapted.losses[0] if adapted.losses else loss.detach(),
            query_loss=loss.detach(),
            query_output=output.detach(),
        )
