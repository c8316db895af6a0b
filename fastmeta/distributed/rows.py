"""Task rows that lie on several ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.distributed.sharding import Sharding
from fastmeta.reference import accumulation_dtype
from fastmeta.rows import TaskRows

# Tasks a rank up to which sending rows is cheaper than two sums of P numbers over all ranks.
_FEW = 3


class ShardedRows(TaskRows):
    """The meta-gradients of all tasks, of which each rank has its own tasks' rows.

    Per rank and meta-step, with ``t`` tasks a rank, ``P`` parameters and many ranks, about so many
    numbers are sent:

    * mean aggregation: ``2P``, one sum over ranks;
    * Gradient Agreement and GSL weights: ``4P``, two sums; but with ``t <= 3`` as the next;
    * all that need the Gram matrix: ``(t + 1) P``. Rank ``r`` gets its share of the *columns* of
      all tasks' rows, the Gram matrix is the sum of the shares', and each rank combines its own
      columns of the result.

    Weights are the first rank's on all of them, so that parameters stay equal to the bit.

    Args:
        own: the rows of this rank's tasks.
        sharding: of the tasks.
    """

    def __init__(self, own: TaskRows, sharding: Sharding) -> None:
        super().__init__(own.query, own.inner, own.coef, own.bounds)
        self._sharding = sharding
        self._columns: Tensor | None = None  # of the meta-gradients, of all tasks

    @property
    def tasks(self) -> int:
        """``T``, of all ranks."""
        return self._sharding.tasks

    def gram(self) -> Tensor:
        """See :meth:`TaskRows.gram`."""
        return self._sharding.sum(ops.gram(self._shared_columns())[0])

    def mean_similarity(self, inner: bool = False) -> Tensor:
        """See :meth:`TaskRows.mean_similarity`."""
        sharding = self._sharding
        if max(sharding.counts) <= _FEW:
            columns = sharding.exchange(self.compared(True)) if inner else self._shared_columns()
            return sharding.sum(ops.mean_similarity(columns))
        rows = self.compared(inner)
        total = sharding.sum(rows.sum(0, dtype=accumulation_dtype(rows.dtype)))
        wide = rows.to(total.dtype)
        return sharding.gather(torch.stack([wide @ total, wide.square().sum(1)], 1))

    def combine(self, weights: Tensor) -> Tensor:
        """See :meth:`TaskRows.combine`."""
        sharding = self._sharding
        weights = sharding.same(weights.clone())
        if self._columns is None:
            return sharding.sum(super().combine(weights[sharding.own]))
        return sharding.gather_columns(ops.combine(self._columns, weights), self.query.shape[1])

    def _shared_columns(self) -> Tensor:
        if self._columns is None:
            self._columns = self._sharding.exchange(self.meta())
        return self._columns
