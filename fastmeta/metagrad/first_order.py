"""The first-order meta-gradient of FOMAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.adaptation import Adaptation, Tape
from fastmeta.metagrad.base import Episode, MetaGradient, TaskGradient


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
        tape = Tape() if adaptation.rates else None
        adapted = adaptation.adapt(
            lambda p: episode.support(p)[0], params, record=record, tape=tape
        )
        loss, output = episode.query(adapted.fast)
        grads = torch.autograd.grad(
            loss, adapted.fast, allow_unused=True, materialize_grads=tape is not None
        )
        # The walk back over the updates alone: inner gradients are constants.
        d_rates = [] if tape is None else tape.walk_back(grads, adapted.state, adaptation.rates)[1]
        return TaskGradient.of([*grads, *d_rates], adapted, loss, output, record)
