"""Jacobians whose rows are task gradients, and the aggregations under test."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fastmeta.aggregation import AGGREGATIONS, GramAggregation
from fastmeta.gradients import TaskGradients

ALL = tuple(AGGREGATIONS)
GRAM = tuple(name for name in ALL if isinstance(AGGREGATIONS[name](), GramAggregation))
SEED = 7  # of the orders that PCGrad draws


def weights(name: str, jacobian: Tensor, losses: Tensor | None = None, **options: Any) -> Tensor:
    """Weights of the task gradients; PCGrad draws the same orders in every call.

    All losses are one by default.
    """
    if name == "agreement":
        options = {"of": "meta", **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        rows = TaskGradients(
            jacobian, losses=torch.ones(len(jacobian)) if losses is None else losses
        )
        return AGGREGATIONS[name](**options).weights(rows)


def direction(name: str, jacobian: Tensor, losses: Tensor | None = None, **options: Any) -> Tensor:
    """Weighted sum of the task gradients."""
    return weights(name, jacobian, losses, **options).to(jacobian.dtype) @ jacobian


def orthonormal(tasks: int, parameters: int) -> Tensor:
    """Random orthonormal rows."""
    return torch.linalg.qr(torch.randn(parameters, tasks, dtype=torch.float64))[0].mT


def jacobian(tasks: int, parameters: int) -> Tensor:
    """Task gradients with norms from 1/3 to 3 in random, well-conditioned directions.

    Before the rows are scaled, singular values are between 0.2 and 1.8: most pairs conflict or
    agree noticeably, and rounding errors grow by a factor of at most 100.
    """
    mixed = torch.randn(tasks, tasks, dtype=torch.float64)
    mixed = torch.eye(tasks, dtype=torch.float64) + 0.8 * mixed / torch.linalg.matrix_norm(mixed, 2)
    norms = 3 ** (2 * torch.rand(tasks, 1, dtype=torch.float64) - 1)
    return norms * (mixed @ orthonormal(tasks, parameters))


@st.composite
def jacobians(draw: st.DrawFn, min_tasks: int = 1, max_tasks: int = 6) -> Tensor:
    """Draws a `jacobian` of any shape, and leaves torch's generator seeded."""
    tasks = draw(st.integers(min_tasks, max_tasks))
    torch.manual_seed(draw(st.integers(0, 2**32)))
    return jacobian(tasks, tasks + draw(st.integers(0, 5)))
