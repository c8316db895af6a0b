"""Another aggregation, with the step of MGDA as a guard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_choice, check_in_range
from fastmeta._options import construct, forwards_options, named
from fastmeta.aggregation.base import Aggregation
from fastmeta.aggregation.mgda import MGDA
from fastmeta.gradients import TaskGradients


class Guarded(Aggregation):
    """Another aggregation where its step lowers the loss of every task, else MGDA.

    With `d*` the shortest convex combination of the gradients (MGDA), for which
    `min_i <g_i, d*> = |d*|^2`, the inner aggregation's `d` is taken if `min_i <g_i, d> >= c
    |d*|^2`, and `d*` otherwise. The idea of guarding a learned step in this way is that of ML2O
    (Yang, Yang, Tang 2023, arXiv 2311.00559), whose guard was not available to us: this one is
    **ours**. Only the Gram matrix is needed for it, which is computed once; solved on the host.

    Args:
        inner: the aggregation that proposes a step.
        c: the least decrease of every task's loss to first order, relative to the decrease by
            MGDA's step; at most 1. With 0 a step is refused only if it conflicts with a task, with
            1 only steps as good as MGDA's for the worst-off task are taken; negative values permit
            conflicts.

    Raises:
        ValueError: if `c` is not a finite number of at most 1.
    """

    def __init__(self, inner: Aggregation, c: float = 0.1) -> None:
        check_in_range("c", c, -math.inf, 1, closed=True)
        self.inner = inner
        self.c = c

    @property
    @override
    def needs_support_gradients(self) -> bool:
        return self.inner.needs_support_gradients

    @property
    @override
    def needs_losses(self) -> bool:
        return self.inner.needs_losses

    @property
    @override
    def state_names(self) -> tuple[str, ...]:
        return self.inner.state_names

    @override
    def weights(self, gradients: TaskGradients) -> Tensor:
        proposed, safe = self.inner.weights(gradients), MGDA().weights(gradients)
        gram, along, least = gradients.gram().double(), proposed.double(), safe.double()
        decrease = gram @ along
        if gradients.finite is not None:
            decrease = torch.where(gradients.finite, decrease, torch.inf)
        # False for weights that are not finite, too.
        return torch.where(decrease.amin() >= self.c * (least @ gram @ least), proposed, safe)


def guarded_by_name(
    others: Mapping[str, Callable[..., Aggregation]],
) -> Callable[..., Guarded]:
    """Makes the guard of an aggregation that is given by its name.

    Args:
        others: the aggregations that can be guarded, by name.
    """
    others = dict(others)

    @forwards_options(named(others, "inner", "mean"))
    def guarded(inner: str = "mean", c: float = 0.1, **options: Any) -> Guarded:
        """Another aggregation where its step lowers the loss of every task, else MGDA.

        Args:
            inner: name of the aggregation that proposes the step, whose options are accepted, too.
            c: the least decrease of every task's loss, relative to that by MGDA's step; at most 1.
            **options: of this aggregation.
        """
        check_choice("inner", inner, others)
        return Guarded(construct(f"aggregation {inner!r}", others[inner], options), c)

    return guarded
