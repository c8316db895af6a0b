"""The first-order meta-gradient of FOMAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.adaptation import Adaptation, Tape
from fastmeta.metagrad.base import Episode, MetaGradient, TaskGradient, mean_grads


class FirstOrder(MetaGradient):
    """The query gradient at the fast weights: MAML without its second derivatives.

    Finn et al. 2017, section 5.2; Nichol et al. 2018, "On First-Order Meta-Learning Algorithms".
    Learned rates have their gradient with the inner gradients held fixed.
    """

    def task(
        self, episode: Episode, params: Sequence[Tensor], adaptation: Adaptation, record: bool
    ) -> TaskGradient:
        """See :meth:`MetaGradient.task`."""
        tape = Tape() if adaptation.rates else None
        adapted = adaptation.adapt(
            lambda p: episode.support(p)[0], params, record=record, tape=tape
        )
        loss, output = episode.query(adapted.fast)
        grads = torch.autograd.grad(
            loss, adapted.fast, allow_unused=True, materialize_grads=tape is not None
        )
        d_rates = [] if tape is None else _rates(tape, grads, adapted.state, adaptation)
        return TaskGradient(
            query=[*grads, *d_rates],
            inner=mean_grads(adapted.inner_grads) if record else None,
            support_loss=adapted.losses[0] if adapted.losses else loss.detach(),
            query_loss=loss.detach(),
            query_output=output.detach(),
        )


def _rates(
    tape: Tape, v: Sequence[Tensor], state: Sequence[Tensor], adaptation: Adaptation
) -> list[Tensor]:
    """The gradient in the learned rates, from the query gradient ``v``."""
    d_state = [torch.zeros_like(s) for s in state]
    total = [torch.zeros_like(r) for r in adaptation.rates]
    while tape.steps:
        back = tape.steps.pop().pullback(v, d_state)
        v, d_state = back.params, back.state
        total = [a + b for a, b in zip(total, back.rates, strict=True)]
    return total
