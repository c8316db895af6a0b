"""The packed gradients of the tasks marked since the last outer step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import reduce
from operator import is_not

import torch
from torch import Tensor

from fastmeta.gradients import GradientBuffer
from fastmeta.optim.recorder import Grads


class MarkedTasks:
    """Gradients of a loop's tasks, packed in the widest dtype on the first parameter's device.

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

    @property
    def precision(self) -> torch.dtype:
        """The coarsest dtype of the parameters."""
        return max((p.dtype for p in self.params), key=lambda dtype: torch.finfo(dtype).eps)

    def append(
        self, params: Sequence[Tensor], query: Grads, support: Grads | None, scale: float
    ) -> None:
        """Adds a task.

        Raises:
            RuntimeError: if the tasks before have other parameters.
            TypeError: if a gradient is sparse.
        """
        for k, grad in enumerate(query):
            if grad is not None and grad.layout is not torch.strided:
                raise TypeError(
                    f"the gradient of parameter {k} is {grad.layout}; expected a dense one. Create "
                    "the layer with sparse=False."
                )
        if len(params) != len(self.params) or any(map(is_not, params, self.params)):
            if self.scales:
                raise RuntimeError(
                    "requires_grad of a parameter changed between two tasks of a meta-step; change "
                    "it between step() and the next task, or call zero_grad() to start again."
                )
            like = params[0].new_empty(
                0, dtype=reduce(torch.promote_types, (p.dtype for p in params))
            )
            self.params = params
            self.outer, self.support = GradientBuffer(params, like), GradientBuffer(params, like)
        row = self.outer.append(query)
        if scale != 1:
            row.div_(scale)
        if support is not None:
            self.support.append(support)
        self.scales.append(scale)

    def discard(self) -> None:
        """Forgets the tasks, keeps the memory."""
        self.scales = []
        if self.params:
            self.outer.clear()
            self.support.clear()


def check_real(params: Sequence[Tensor], group: int) -> None:
    """Rejects complex parameters, whose gradients have no similarity here.

    Raises:
        TypeError: if one is complex.
    """
    for i, param in enumerate(params):
        if param.is_complex():
            raise TypeError(
                f"parameter {i} of group {group} is {param.dtype}; expected real parameters, such "
                "as torch.view_as_real of it."
            )


def warn_unmarked(base: object, metagrad: object, aggregation: object) -> None:
    """Warns of an outer step with gradients, but without a marked task."""
    warnings.warn(
        f"step() without a marked task: {type(base).__name__} takes its step with .grad as it is. "
        "Run each task of the loop in 'with opt.task(): ...' for "
        f"metagrad.{type(metagrad).__name__} and aggregation.{type(aggregation).__name__} to take "
        "effect.",
        UserWarning,
        stacklevel=5,
    )
