"""The gradient-similarity meta-gradient."""

from __future__ import annotations

from typing import Any

from fastmeta import ops
from fastmeta.metagrad.first_order import FirstOrder
from fastmeta.metagrad.gsl_rule import GslRule
from fastmeta.rows import RowBuffer, TaskRows


class GSL(FirstOrder):
    """FOMAML's meta-gradient corrected towards (or away from) the task's support gradient.

    Our reconstruction of GSL/AHE (Tak & Hong 2024); first-order calculations only. Costs one extra
    buffer of ``T`` rows and two passes over it. R3 is a weighting of tasks and lives in
    :class:`fastmeta.aggregation.GslWeights`.

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

    @property
    def records_inner(self) -> bool:
        """See :class:`MetaGradient`."""
        return self.rule.needs_inner

    def rows(self, query: RowBuffer, inner: RowBuffer | None) -> TaskRows:
        """See :meth:`MetaGradient.rows`."""
        if inner is None or not self.rule.needs_inner:
            self.rule.step += 1
            return super().rows(query, inner)
        u, v, bounds = query.filled, inner.filled, query.layout.bounds
        stats = ops.row_similarity(u, v, bounds)
        coef = self.rule.coefficients(stats)
        return TaskRows(u, v, coef, None if coef.shape[1] == 1 else bounds)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`MetaGradient.state_dict`."""
        return self.rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`MetaGradient.load_state_dict`."""
        self.rule.load_state_dict(state)
