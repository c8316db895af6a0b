"""The meta-gradients of a meta-batch, kept as lazy linear combinations of packed buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta import ops


class TaskGradients:
    """The meta-gradients of ``T`` tasks as rows, or as sums of two rows that are never formed.

    Aggregations ask it for inner products and sums alone, so that the rows may lie on several ranks
    (:class:`fastmeta.distributed.ShardedTaskGradients`).

    Attributes:
        query: ``(T, P)``, the query gradients at the fast weights, or the meta-gradients.
        inner: ``(T, P)``, the mean inner (support) gradients, if they were recorded.
        coef: ``(T, S, B)``: the meta-gradient of task ``i`` is
            ``coef[i, s, 0] * query[i] + coef[i, s, 1] * inner[i]`` on segment ``s``; ``None`` if it
            is ``query[i]``.
        bounds: the segments of ``coef``, see :func:`fastmeta.ops.combine`.
    """

    def __init__(
        self,
        query: Tensor,
        inner: Tensor | None = None,
        coef: Tensor | None = None,
        bounds: tuple[int, ...] | None = None,
    ) -> None:
        self.query = query
        self.inner = inner
        self.coef = coef
        self.bounds = (0, query.shape[1]) if bounds is None else bounds

    @property
    def tasks(self) -> int:
        """``T``."""
        return len(self.query)

    def _buffers(self) -> list[Tensor]:
        if self.coef is None or self.coef.shape[-1] == 1:
            return [self.query]
        assert self.inner is not None
        return [self.query, self.inner]

    def meta(self) -> Tensor:
        """The meta-gradients themselves, ``(T, P)``."""
        if self.coef is None:
            return self.query
        rows = [
            ops.combine([b[i : i + 1] for b in self._buffers()], self.coef[i : i + 1], self.bounds)
            for i in range(len(self.query))
        ]
        return torch.stack(rows)

    def compared(self, inner: bool) -> Tensor:
        """The mean inner gradients, which were recorded, or the meta-gradients; ``(T, P)``."""
        if not inner:
            return self.meta()
        assert self.inner is not None
        return self.inner

    def gram(self) -> Tensor:
        """The inner products ``(T, T)`` of the meta-gradients, see :func:`fastmeta.ops.gram`."""
        return ops.gram(self.meta())[0]

    def mean_similarity(self, inner: bool = False) -> Tensor:
        """``(T, 2)`` of :meth:`compared`, see :func:`fastmeta.ops.mean_similarity`."""
        return ops.mean_similarity(self.compared(inner))

    def combine(self, weights: Tensor) -> Tensor:
        """``sum_i weights[i] * meta_i``, ``(P,)``, in one pass over the rows."""
        if self.coef is None:
            return ops.combine(self.query, weights)
        return ops.combine(self._buffers(), weights[:, None, None] * self.coef, self.bounds)
