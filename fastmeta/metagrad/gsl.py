"""The gradient-similarity meta-gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.adaptation import Adaptation
from fastmeta.gradients import GradientBuffer, TaskGradients
from fastmeta.metagrad.base import Episode, TaskGradient
from fastmeta.metagrad.first_order import FirstOrder
from fastmeta.metagrad.gsl_rule import GslRule


class GSL(FirstOrder):
    """FOMAML's meta-gradient corrected towards (or away from) the task's support gradient.

    Variants R0, R1, R2 and R2p of our reconstruction of GSL/AHE (Tak & Hong 2024); first-order
    calculations only. Costs one extra buffer of ``T`` rows and two passes over it. Learned rates,
    which support gradients know nothing of, keep FOMAML's meta-gradient. R3 is a weighting of tasks
    and lives in :class:`fastmeta.aggregation.GslWeights`; :func:`fastmeta.metagrad.gsl_variant` has
    the others.

    Args:
        **options: of :class:`fastmeta.metagrad.GslRule`.

    Raises:
        ValueError: if an option is out of range, or the variant is R3.
    """

    separable = True

    def __init__(self, **options: Any) -> None:
        self.rule = GslRule(**options)
        if self.rule.variant == "R3":
            raise ValueError(
                "variant R3 weights tasks: use aggregation='gsl' with metagrad='first-order'."
            )
        self._params: int | None = None

    @property
    def records_inner(self) -> bool:
        """See :class:`MetaGradient`."""
        return self.rule.needs_inner

    def task(
        self, episode: Episode, params: Sequence[Tensor], adaptation: Adaptation, record: bool
    ) -> TaskGradient:
        """See :meth:`MetaGradient.task`."""
        self._params = len(params)
        return super().task(episode, params, adaptation, record)

    def rows(self, query: GradientBuffer, inner: GradientBuffer | None) -> TaskGradients:
        """See :meth:`MetaGradient.rows`."""
        if inner is None or not self.rule.needs_inner:
            self.rule.step += 1
            return super().rows(query, inner)
        u, v, bounds = query.filled, inner.filled, query.layout.bounds
        if self._params is not None:  # else an engine of its own, which takes no learned rates
            bounds = bounds[: self._params + 1]
        compared = slice(bounds[-1])
        if self.rule.variant == "R2p":
            seen = u[:, compared]
            seen *= self.rule.element_weights(seen, v[:, compared], self.sharding)
            return TaskGradients(u, v)
        bounds = self.rule.segments(bounds)
        coef = self.coefficients(ops.row_similarity(u[:, compared], v[:, compared], bounds))
        if bounds[-1] < u.shape[1]:
            plain = torch.zeros_like(coef[:, :1])
            plain[..., 0] = 1
            coef = torch.cat([coef, plain], 1)
            bounds = (*bounds, u.shape[1])
        return TaskGradients(u, v, coef, bounds)

    def coefficients(self, stats: Tensor) -> Tensor:
        """See :meth:`GslRule.coefficients`."""
        return self.rule.coefficients(stats, self.sharding)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`MetaGradient.state_dict`."""
        return self.rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`MetaGradient.load_state_dict`."""
        self.rule.load_state_dict(state)
