"""The meta-gradients of a meta-batch, kept as lazy linear combinations of packed buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta import ops


class TaskGradients:
    """The meta-gradients of `T` tasks, possibly as unevaluated linear combinations.

    Aggregations need only inner products and weighted sums, so that the gradients may be sharded
    over ranks ([`fastmeta.distributed.ShardedTaskGradients`][]).

    Args:
        outer: `(T, P)`, the meta-gradients, or the query gradients that `coef` refers to.
        support: `(T, P)`, the mean support gradients, if they were recorded.
        coef: `(T, S, B)`: the meta-gradient of task `i` is
            `coef[i, s, 0] * outer[i] + coef[i, s, 1] * support[i]` on segment `s`; `None` if
            it is `outer[i]`.
        bounds: the segments of `coef`, see [`fastmeta.ops.combine`][].
        finite: `(T,)`, bool, if non-finite tasks are left out of the meta-step: their gradients
            are zero. `None` if no task is left out.
        losses: `(T,)`, the query losses after adaptation, if they are known; not finite for tasks
            that are left out.

    Attributes:
        state: what the aggregation keeps between meta-steps, by name; owned and saved by the
            learner, empty before the first meta-step.
    """

    def __init__(
        self,
        outer: Tensor,
        support: Tensor | None = None,
        coef: Tensor | None = None,
        bounds: tuple[int, ...] | None = None,
        finite: Tensor | None = None,
        losses: Tensor | None = None,
    ) -> None:
        self.outer = outer
        self.support = support
        self.coef = coef
        self.bounds = (0, outer.shape[1]) if bounds is None else bounds
        self.finite = finite
        self.state: dict[str, Tensor] = {}
        self._losses = losses
        self._gram: Tensor | None = None

    @property
    def tasks(self) -> int:
        """The number of tasks, `T`."""
        return len(self.outer)

    @property
    def count(self) -> int | Tensor:
        """The number of tasks not left out: `T`, or a scalar on the device if some may be."""
        return self.tasks if self.finite is None else self.finite.sum()

    @property
    def losses(self) -> Tensor:
        """`(T,)`, the tasks' query losses after adaptation.

        Raises:
            RuntimeError: if they are not known.
        """
        if self._losses is None:
            raise RuntimeError(
                "the losses of the tasks are not known; expected TaskGradients(..., losses=...), "
                "as in the meta-steps of a learner."
            )
        return self._losses

    def with_losses(self, losses: Tensor, state: dict[str, Tensor]) -> TaskGradients:
        """The same gradients with the query losses `(T,)` and the state of the aggregation."""
        found = TaskGradients(self.outer, self.support, self.coef, self.bounds, self.finite, losses)
        found.state = state
        return found

    def with_coefficients(self, coef: Tensor, bounds: tuple[int, ...]) -> TaskGradients:
        """Other linear combinations of the same buffers."""
        return TaskGradients(self.outer, self.support, coef, bounds, self.finite, self._losses)

    def _buffers(self) -> list[Tensor]:
        if self.coef is None or self.coef.shape[-1] == 1:
            return [self.outer]
        assert self.support is not None
        return [self.outer, self.support]

    def meta(self) -> Tensor:
        """The evaluated meta-gradients, `(T, P)`."""
        if self.coef is None:
            return self.outer
        evaluated = [
            ops.combine([b[i : i + 1] for b in self._buffers()], self.coef[i : i + 1], self.bounds)
            for i in range(len(self.outer))
        ]
        return torch.stack(evaluated)

    def _select(self, support: bool) -> Tensor:
        """The (recorded) mean support gradients or the meta-gradients, `(T, P)`."""
        if not support:
            return self.meta()
        assert self.support is not None
        return self.support

    def gram(self) -> Tensor:
        """The Gram matrix `(T, T)` of the meta-gradients, see [`fastmeta.ops.gram`][].

        Computed once.
        """
        if self._gram is None:
            self._gram = self._compute_gram()
        return self._gram

    def _compute_gram(self) -> Tensor:
        return ops.gram(self.meta())[0]

    def mean_similarity(self, support: bool = False) -> Tensor:
        """Similarity to the mean, `(T, 2)`, see [`fastmeta.ops.mean_similarity`][].

        Args:
            support: of the mean support gradients rather than the meta-gradients.
        """
        return ops.mean_similarity(self._select(support))

    def combine(self, weights: Tensor) -> Tensor:
        """`sum_i weights[i] * meta_i`, `(P,)`, in one pass over the buffers."""
        if self.coef is None:
            return ops.combine(self.outer, weights)
        return ops.combine(self._buffers(), weights[:, None, None] * self.coef, self.bounds)
