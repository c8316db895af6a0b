"""Task rows that lie on several ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.distributed import _cost as cost
from fastmeta.distributed.sharding import Sharding
from fastmeta.gradients import TaskGradients
from fastmeta.reference import accumulation_dtype


class ShardedTaskGradients(TaskGradients):
    """The meta-gradients of all tasks, of which each rank has its own tasks' rows.

    What is sent is what is cheapest by ``fastmeta.distributed._cost``:

    * ``"sums"`` over ranks, of rows and of weighted rows;
    * ``"columns"``: rank ``r`` gets its share of the columns of all tasks' rows. The Gram matrix is
      the sum of the shares', and each rank combines its own columns of the result;
    * ``"rows"``, all tasks' on all ranks, of networks so small that messages count alone.

    With the last two the weights are the first rank's on all of them, so that parameters stay equal
    to the bit; a sum is equal anyway, each task in it with the weight that its own rank has found.

    Args:
        own: the rows of this rank's tasks.
        sharding: of the tasks.
    """

    def __init__(self, own: TaskGradients, sharding: Sharding) -> None:
        finite = own.finite if own.finite is None else sharding.gather(own.finite.byte()).bool()
        super().__init__(own.outer, own.support, own.coef, own.bounds, finite)
        self._sharding = sharding
        self._sizes = sharding.tasks, own.outer.shape[1], sharding.size
        self._shared: tuple[cost.Plan, Tensor] | None = None  # the meta-gradients, spread by a plan

    @property
    def tasks(self) -> int:
        """``T``, of all ranks."""
        return self._sharding.tasks

    def gram(self) -> Tensor:
        """See :meth:`TaskGradients.gram`."""
        plan = cost.cheapest(cost.gram(*self._sizes))
        shared = self._spread(self.meta(), plan)
        self._shared = plan, shared
        return self._whole(ops.gram(shared)[0], plan)

    def mean_similarity(self, support: bool = False) -> Tensor:
        """See :meth:`TaskGradients.mean_similarity`."""
        plan, rows = cost.cheapest(cost.similarity(*self._sizes, support)), self.compared(support)
        if plan != "sums":
            shared = self._spread(rows, plan)
            self._shared = None if support else (plan, shared)
            return self._whole(ops.mean_similarity(shared), plan)
        total = self._sharding.sum(rows.sum(0, dtype=accumulation_dtype(rows.dtype)))
        wide = rows.to(total.dtype)
        return self._sharding.gather(torch.stack([wide @ total, wide.square().sum(1)], 1))

    def combine(self, weights: Tensor) -> Tensor:
        """See :meth:`TaskGradients.combine`.

        Raises:
            ValueError: if there is not one weight for each task of all ranks.
        """
        sharding = self._sharding
        if weights.shape != (self.tasks,):
            raise ValueError(
                f"expected one weight for each of the {self.tasks} tasks of all ranks, got shape "
                f"{tuple(weights.shape)}. Under a sharding an aggregation sees all tasks through "
                "tasks, gram() and mean_similarity() alone; meta() has this rank's."
            )
        if self._shared is None:
            return sharding.sum(super().combine(weights[sharding.own]))
        plan, shared = self._shared
        flat = ops.combine(shared, sharding.same(weights.clone()))
        return flat if plan == "rows" else sharding.gather_columns(flat, self.outer.shape[1])

    def _spread(self, rows: Tensor, plan: cost.Plan) -> Tensor:
        """All tasks' rows, or this rank's columns of them."""
        return self._sharding.gather(rows) if plan == "rows" else self._sharding.exchange(rows)

    def _whole(self, found: Tensor, plan: cost.Plan) -> Tensor:
        """What was found from :meth:`_spread`; from columns it is a part of a sum."""
        return found if plan == "rows" else self._sharding.sum(found)
