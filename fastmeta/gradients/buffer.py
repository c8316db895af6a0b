"""A growing buffer of packed gradients, one row per task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.gradients.layout import FlatLayout


class GradientBuffer:
    """A `(capacity, P)` buffer that grows by doubling and is reused in every step.

    Args:
        params: the parameters that the gradients belong to.
        like: a tensor of the buffer's dtype and device; the first parameter by default.
    """

    def __init__(self, params: Sequence[Tensor], like: Tensor | None = None) -> None:
        self.layout = FlatLayout.of(params)
        self._like = params[0] if like is None else like
        self._data: Tensor | None = None
        self.count = 0

    @property
    def filled(self) -> Tensor:
        """`(T, P)`: the rows written since `clear`, without a copy."""
        if self._data is None:
            self._data = self._like.new_empty(0, self.layout.size, requires_grad=False)
        return self._data[: self.count]

    def clear(self) -> None:
        """Removes all rows, keeps the memory."""
        self.count = 0

    def adopt(self, gradients: Tensor) -> None:
        """Uses packed gradients `(T, P)` as the buffer, without a copy."""
        self._data, self.count = gradients, len(gradients)

    def extend(self, grads: Sequence[Tensor | None], count: int) -> None:
        """Packs the gradients of `count` tasks, `(count, *shape)` each; see `append`."""
        dense = [
            self._like.new_zeros(count, shape.numel(), requires_grad=False)
            if grad is None
            else grad.reshape(count, -1)
            for grad, shape in zip_longest(grads, self.layout.shapes)
        ]
        torch.cat(dense, 1, out=self._next_rows(count))

    def append(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Packs the gradients of one task into the next row, and returns that row.

        `None` means zero, and so do omitted gradients at the end.
        """
        dense = [
            torch.zeros(shape, dtype=self._like.dtype, device=self._like.device)
            if grad is None
            else grad.to(self._like)
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
