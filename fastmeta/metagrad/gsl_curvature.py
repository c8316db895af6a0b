"""GSL's correction, as long as the Hessian term should be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from fastmeta.adaptation import Adaptation, Grads
from fastmeta.metagrad._replay import Replay
from fastmeta.metagrad._secant import secant
from fastmeta.metagrad.base import Episode, TaskGradient
from fastmeta.metagrad.first_order import first_order
from fastmeta.metagrad.gsl import GSL


class CurvatureGSL(GSL):
    """:class:`GSL` with the magnitude rule ``"inner-lr"``: R1 with ``|d| = a |H| |u|``, by task.

    ``|H|`` is estimated by ``|g_s(theta) - g_s(theta')| / (a |g_s(theta)|)``, ``theta'`` being the
    parameters after the first inner step of rate ``a``, which cancels: the rule has a meaning for
    any inner loop. Costs one more support gradient a task if there is one inner step.

    Args:
        **options: of :class:`fastmeta.metagrad.GslRule` for R1, without a magnitude.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(magnitude="norm-match", **options)
        if self.rule.variant != "R1":
            raise ValueError(
                f"magnitude 'inner-lr' is a rule of variant R1, got {self.rule.variant}."
            )
        self._lengths: list[Tensor] = []

    def task(
        self, episode: Episode, params: Sequence[Tensor], adaptation: Adaptation, record: bool
    ) -> TaskGradient:
        """See :meth:`MetaGradient.task`."""
        if not self.rule.needs_inner:
            return super().task(episode, params, adaptation, record)
        self._params = len(params)
        replay = Replay(episode, params[0].device)
        found, adapted = first_order(replay.loss, episode.query, params, adaptation, record)
        bend, whole = _norm(secant(adapted, replay)), _norm(adapted.inner_grads[0])
        self._lengths.append(torch.where(whole > 0, bend / whole, 0))
        return found

    def coefficients(self, stats: Tensor) -> Tensor:
        """See :meth:`GslRule.coefficients`."""
        coef = super().coefficients(stats)
        # Not all of them, if a meta-batch before failed midway.
        lengths = torch.stack(self._lengths[-len(coef) :]).to(coef)
        self._lengths = []
        coef = lengths[:, None, None] * coef  # and the rest of the query gradient as it is
        coef[..., 0] += 1 - lengths[:, None]
        return coef


def _norm(grads: Grads) -> Tensor:
    return get_total_norm([g for g in grads if g is not None])
