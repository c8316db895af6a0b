"""The first-order meta-gradient of FOMAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.adaptation import Adaptation, Adapted, LossFn, Tape, run_inner_loop
from fastmeta.metagrad.base import Episode, Evaluate, MetaGradient, TaskGradient


class FirstOrder(MetaGradient):
    """The query gradient at the fast weights: MAML without its second derivatives.

    Finn et al. 2017, section 5.2; Nichol et al. 2018, "On First-Order Meta-Learning Algorithms".
    Learned rates have their gradient with the inner gradients held fixed.
    """

    separable = True

    def task(
        self, episode: Episode, params: Sequence[Tensor], adaptation: Adaptation, record: bool
    ) -> TaskGradient:
        """See :meth:`MetaGradient.task`."""

        def support(fast: Sequence[Tensor]) -> Tensor:
            return episode.support(fast)[0]

        return first_order(support, episode.query, params, adaptation, record)[0]


def first_order(
    support: LossFn,
    query: Evaluate,
    params: Sequence[Tensor],
    adaptation: Adaptation,
    record: bool,
) -> tuple[TaskGradient, Adapted]:
    """A task's first-order meta-gradient, and the inner loop that led to it.

    Args:
        support: the support loss.
        query: loss and outputs on the query set.
        params: the initialisation.
        adaptation: the inner loop.
        record: whether to keep the inner gradients.
    """
    tape = Tape() if adaptation.rates else None
    adapted = run_inner_loop(adaptation, support, params, record=record, tape=tape)
    loss, output = query(adapted.fast)
    grads = torch.autograd.grad(
        loss, adapted.fast, allow_unused=True, materialize_grads=tape is not None
    )
    # The walk back over the updates alone: inner gradients are constants.
    d_rates = [] if tape is None else tape.reverse_sweep(grads, adapted.state, adaptation.rates)[1]
    return TaskGradient.of([*grads, *d_rates], adapted, loss, output, record), adapted
