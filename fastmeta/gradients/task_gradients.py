"""The meta-gradients of a meta-batch, kept as lazy linear combinations of packed buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta import ops


class TaskGradients:
    """The meta-gradients of ``T`` tasks, possibly as linear combinations that are never formed.

    Aggregations only ask for inner products and weighted sums, so that the gradients may be spread
    over ranks (:class:`fastmeta.distributed.ShardedTaskGradients`).

    Args:
        outer: ``(T, P)``, the meta-gradients, or the query gradients that ``coef`` refers to.
        support: ``(T, P)``, the mean support gradients, if they were recorded.
        coef: ``(T, S, B)``: the meta-gradient of task ``i`` is
            ``coef[i, s, 0] * outer[i] + coef[i, s, 1] * support[i]`` on segment ``s``; ``None`` if
            it is ``outer[i]``.
        bounds: the segments of ``coef``, see :func:`fastmeta.ops.combine`.
        finite: ``(T,)``, bool, where non-finite tasks are left out of the meta-step: gradients of
            the tasks left out are zero. ``None`` if all tasks count.
    """

    def __init__(
        self,
        outer: Tensor,
        support: Tensor | None = None,
        coef: Tensor | None = None,
        bounds: tuple[int, ...] | None = None,
        finite: Tensor | None = None,
    ) -> None:
        self.outer = outer
        self.support = support
        self.coef = coef
        self.bounds = (0, outer.shape[1]) if bounds is None else bounds
        self.finite = finite

    @property
    def tasks(self) -> int:
        """``T``."""
        return len(self.outer)

    @property
    def count(self) -> int | Tensor:
        """How many tasks count: ``T``, or a scalar on the device if some may be left out."""
        return self.tasks if self.finite is None else self.finite.sum()

    def with_coefficients(self, coef: Tensor, bounds: tuple[int, ...]) -> TaskGradients:
        """The linear combinations ``coef`` of the same buffers."""
        return TaskGradients(self.outer, self.support, coef, bounds, self.finite)

    def _buffers(self) -> list[Tensor]:
        if self.coef is None or self.coef.shape[-1] == 1:
            return [self.outer]
        assert self.support is not None
        return [self.outer, self.support]

    def meta(self) -> Tensor:
        """The meta-gradients themselves, ``(T, P)``."""
        if self.coef is None:
            return self.outer
        rows = [
            ops.combine([b[i : i + 1] for b in self._buffers()], self.coef[i : i + 1], self.bounds)
            for i in range(len(self.outer))
        ]
        return torch.stack(rows)

    def compared(self, support: bool) -> Tensor:
        """The mean support gradients, which were recorded, or the meta-gradients; ``(T, P)``."""
        if not support:
            return self.meta()
        assert self.support is not None
        return self.support

    def gram(self) -> Tensor:
        """The Gram matrix ``(T, T)`` of the meta-gradients, see :func:`fastmeta.ops.gram`."""
        return ops.gram(self.meta())[0]

    def mean_similarity(self, support: bool = False) -> Tensor:
        """``(T, 2)`` of :meth:`compared`, see :func:`fastmeta.ops.mean_similarity`."""
        return ops.mean_similarity(self.compared(support))

    def combine(self, weights: Tensor) -> Tensor:
        """``sum_i weights[i] * meta_i``, ``(P,)``, in one pass over the buffers."""
        if self.coef is None:
            return ops.combine(self.outer, weights)
        return ops.combine(self._buffers(), weights[:, None, None] * self.coef, self.bounds)
