"""Task gradients that are sharded over ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta.distributed import _cost as cost
from fastmeta.distributed.sharding import Sharding
from fastmeta.gradients import TaskGradients
from fastmeta.reference import accumulation_dtype


class ShardedTaskGradients(TaskGradients):
    """The meta-gradients of all tasks, of which each rank has those of its own tasks.

    Ranks communicate by the cheapest of three plans (see `fastmeta.distributed._cost`):

    * `"sums"`: an all-reduce of gradients and of weighted gradients;
    * `"columns"`: each rank receives its part of the columns of all tasks' gradients. The Gram
      matrix is the sum over these parts, and each rank combines its columns of the result;
    * `"rows"`: each rank receives the gradients of all tasks, for networks so small that only the
      number of messages matters.

    With the last two, all ranks use the weights of the first rank, so that parameters stay bitwise
    equal; a sum is equal anyway, in which each task has the weight that its own rank computed.

    Args:
        own: the gradients of this rank's tasks.
        sharding: of the tasks.
    """

    def __init__(self, own: TaskGradients, sharding: Sharding) -> None:
        finite = own.finite if own.finite is None else sharding.gather(own.finite.byte()).bool()
        super().__init__(own.outer, own.support, own.coef, own.bounds, finite, own._losses)
        self.state = own.state
        self._sharding = sharding
        self._sizes = sharding.tasks, own.outer.shape[1], sharding.size
        # The meta-gradients as received by a plan, for `combine`.
        self._exchanged: tuple[cost.Plan, Tensor] | None = None

    @property
    @override
    def tasks(self) -> int:
        """The number of tasks of all ranks, `T`."""
        return self._sharding.tasks

    @property
    @override
    def losses(self) -> Tensor:
        return self._sharding.gather(super().losses)

    @override
    def _compute_gram(self) -> Tensor:
        plan = cost.cheapest(cost.gram(*self._sizes))
        received = self._exchange(self.meta(), plan)
        self._exchanged = plan, received
        return self._total(ops.gram(received)[0], plan)

    @override
    def mean_similarity(self, support: bool = False) -> Tensor:
        plan, own = cost.cheapest(cost.similarity(*self._sizes, support)), self._select(support)
        if plan != "sums":
            received = self._exchange(own, plan)
            self._exchanged = None if support else (plan, received)
            return self._total(ops.mean_similarity(received), plan)
        total = self._sharding.sum(own.sum(0, dtype=accumulation_dtype(own.dtype)))
        wide = own.to(total.dtype)
        return self._sharding.gather(torch.stack([wide @ total, wide.square().sum(1)], 1))

    @override
    def combine(self, weights: Tensor) -> Tensor:
        """The weighted sum of the meta-gradients of all tasks, `(P,)`, on all ranks.

        Raises:
            ValueError: if there is not one weight for each task of all ranks.
        """
        sharding = self._sharding
        if weights.shape != (self.tasks,):
            raise ValueError(
                f"expected one weight for each of the {self.tasks} tasks of all ranks, got shape "
                f"{tuple(weights.shape)}. With sharding, an aggregation sees all tasks through "
                "tasks, gram() and mean_similarity() only; meta() has this rank's."
            )
        if self._exchanged is None:
            return sharding.sum(super().combine(weights[sharding.own]))
        plan, received = self._exchanged
        flat = ops.combine(received, sharding.broadcast(weights.clone()))
        return flat if plan == "rows" else sharding.gather_columns(flat, self.outer.shape[1])

    def _exchange(self, own: Tensor, plan: cost.Plan) -> Tensor:
        """The gradients of all tasks, or this rank's columns of them."""
        return self._sharding.gather(own) if plan == "rows" else self._sharding.exchange(own)

    def _total(self, found: Tensor, plan: cost.Plan) -> Tensor:
        """The result for all columns, from that for the gradients received."""
        return found if plan == "rows" else self._sharding.sum(found)
