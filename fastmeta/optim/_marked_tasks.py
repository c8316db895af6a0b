"""The packed gradients of the tasks marked since the last outer step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import is_not

import torch
from torch import Tensor

from fastmeta.gradients import GradientBuffer
from fastmeta.optim.recorder import Grads, add


class MarkedTasks:
    """Gradients of a loop's tasks, packed in the widest dtype on the first parameter's device.

    Their combination is part of `.grad`, together with whatever else the loop accumulates there.

    Attributes:
        params: the parameters that the gradients are of.
        outer: the query gradients, without the scales.
        support: the mean support gradients; empty if they are not needed.
        scales: factor of each task's query loss in the loop.
    """

    outer: GradientBuffer
    support: GradientBuffer

    def __init__(self) -> None:
        self.params: Sequence[Tensor] = []
        self.scales: list[float] = []
        self._used: list[bool] = []  # whether a task has a gradient of the parameter
        # .grad as the last task has left it: the tensors, their versions, and both parts of them.
        self._written: Grads = []
        self._versions: list[int] = []
        self._combined: Grads = []
        self._others: Grads = []

    def others(self, params: Sequence[Tensor], grads: Grads) -> Grads:
        """What `.grad` holds besides the tasks; discards them if `.grad` was cleared since.

        Args:
            params: the trainable parameters.
            grads: their `.grad` before a task.

        Raises:
            RuntimeError: if the tasks have other parameters, or a `.grad` was replaced.
        """
        if not self.scales:
            return grads
        same = len(params) == len(self.params) and not any(map(is_not, params, self.params))
        kept = same and not any(
            w is not None and g is not w for g, w in zip(grads, self._written, strict=True)
        )
        if kept and [_version(g) for g in grads] == self._versions:
            return self._others
        if not any(g is not None and g.any() for g in grads):
            self.discard()
            return grads
        if not same:
            raise RuntimeError(
                "requires_grad of a parameter changed between two tasks of a meta-step; change "
                "it between step() and the next task, or call zero_grad() to start again."
            )
        if not kept:
            raise RuntimeError(
                "another tensor was assigned to .grad between two tasks of a meta-step; expected "
                "additions in place, as by backward(). To start again, call zero_grad() of this "
                "optimizer."
            )
        return [
            g if g is None or c is None else g - c.to(g)
            for g, c in zip(grads, self._combined, strict=True)
        ]

    @property
    def precision(self) -> torch.dtype:
        """The coarsest dtype of the parameters."""
        return max((p.dtype for p in self.params), key=lambda dtype: torch.finfo(dtype).eps)

    def append(
        self,
        params: Sequence[Tensor],
        outer: Grads,
        support: Grads | None,
        scale: float,
        divisor: float = 1.0,
    ) -> None:
        """Adds a task.

        Args:
            params: the trainable parameters.
            outer: the task's gradient, `divisor` times.
            support: its mean support gradient, if it is needed.
            scale: factor of its query loss in the loop.
            divisor: see `outer`.

        Raises:
            TypeError: if a gradient is sparse.
        """
        for k, grad in enumerate(outer):
            if grad is not None and grad.layout is not torch.strided:
                raise TypeError(
                    f"the gradient of parameter {k} is {grad.layout}; expected a dense one. Create "
                    "the layer with sparse=False."
                )
        if not self.scales:
            self._used = [False] * len(params)
            if len(params) != len(self.params) or any(map(is_not, params, self.params)):
                dtype = reduce(torch.promote_types, (p.dtype for p in params))
                like = params[0].new_empty(0, dtype=dtype)
                self.params = params
                self.outer, self.support = (GradientBuffer(params, like) for _ in range(2))
        row = self.outer.append(outer)
        if divisor != 1:
            row.div_(divisor)
        self._used = [u or g is not None for u, g in zip(self._used, outer, strict=True)]
        if support is not None:
            self.support.append(support)
        self.scales.append(scale)

    def write(self, combined: Sequence[Tensor], others: Grads) -> Grads:
        """The new `.grad`: the combination of the tasks and what else it holds.

        A parameter that no task uses has no combination.
        """
        self._others = others
        self._combined = [c if used else None for c, used in zip(combined, self._used, strict=True)]
        # Copies, because a regularizer's backward() between two tasks adds to .grad in place.
        parts = [
            None if c is None else c.to(p, copy=True)
            for c, p in zip(self._combined, self.params, strict=True)
        ]
        self._written = [add(o, c) for o, c in zip(others, parts, strict=True)]
        self._versions = [_version(g) for g in self._written]
        return self._written

    def discard(self) -> None:
        """Forgets the tasks, keeps the memory."""
        self.scales = []
        self._written, self._combined, self._others = [], [], []
        if self.params:
            self.outer.clear()
            self.support.clear()


def _version(grad: Tensor | None) -> int:
    return -1 if grad is None else grad._version
