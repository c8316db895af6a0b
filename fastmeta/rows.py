"""The packed gradients of a meta-batch, filled task by task and combined once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.layout import FlatLayout


class RowBuffer:
    """A ``(capacity, P)`` buffer that grows by doubling and is kept from step to step."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.layout = FlatLayout.of(params)
        self._like = params[0]
        self._data: Tensor | None = None
        self.count = 0

    @property
    def filled(self) -> Tensor:
        """``(T, P)``: the rows written since :meth:`clear`, without a copy."""
        if self._data is None:
            self._data = self._like.new_empty(0, self.layout.size, requires_grad=False)
        return self._data[: self.count]

    def clear(self) -> None:
        """Forgets the rows, keeps the memory."""
        self.count = 0

    def adopt(self, rows: Tensor) -> None:
        """Takes the filled rows ``(T, P)`` as they are, in place of its own memory."""
        self._data, self.count = rows, len(rows)

    def extend(self, grads: Sequence[Tensor | None], count: int) -> None:
        """Packs the gradients of ``count`` tasks, ``(count, *shape)`` each, as :meth:`append`."""
        dense = [
            self._like.new_zeros(count, shape.numel(), requires_grad=False)
            if grad is None
            else grad.reshape(count, -1)
            for grad, shape in zip_longest(grads, self.layout.shapes)
        ]
        torch.cat(dense, 1, out=self._next_rows(count))

    def append(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Packs one task's gradients into the next row; returns that row.

        ``None`` means zero, and so do gradients left out at the end.
        """
        dense = [
            torch.zeros(shape, dtype=self._like.dtype, device=self._like.device)
            if grad is None
            else grad
            for grad, shape in zip_longest(grads, self.layout.shapes)
        ]
        row = self._next_rows(1)
        ops.pack_(row, dense)
        return row[0]

    def _next_rows(self, count: int) -> Tensor:
        used, stop = self.filled, self.count + count
        assert self._data is not None
        if stop > len(self._data):
            self._data = used.new_empty(max(4, 2 * self.count, stop), self.layout.size)
            self._data[: self.count] = used
        rows = self._data[self.count : stop]
        self.count = stop
        return rows


class TaskRows:
    """The meta-gradients of ``T`` tasks as rows, or as sums of two rows that are never formed.

    Aggregations ask it for inner products and sums alone, so that the rows may lie on several ranks
    (:class:`fastmeta.distributed.ShardedRows`).

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
