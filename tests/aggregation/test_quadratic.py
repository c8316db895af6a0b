"""The solver of small quadratic programs."""

from __future__ import annotations

import pytest
import torch
from fastmeta.aggregation._quadratic import nonnegative
from hypothesis import given
from torch import Tensor

from tests.aggregation.jacobians import jacobians


def check(matrix: Tensor, linear: Tensor) -> None:
    """Asserts the optimality conditions, which have a unique solution."""
    z = nonnegative(matrix, linear)
    y = matrix @ z + linear
    scale = max(z.max().item(), -linear.min().item())
    assert (z >= 0).all()
    assert (y >= -1e-11 * scale).all()
    assert (y[z > 0].abs() <= 1e-9 * scale).all()


@given(jacobians(max_tasks=8))
def test_optimality(rows: Tensor) -> None:
    check(rows @ rows.mT, torch.randn(len(rows), dtype=torch.float64))


@pytest.mark.parametrize("tasks", [1, 2, 9, 40])
@pytest.mark.parametrize("rank", [1, 3, 20])
def test_optimality_of_nearly_singular_programmes(tasks: int, rank: int) -> None:
    rows = torch.nn.functional.normalize(torch.randn(tasks, rank, dtype=torch.float64))
    matrix = rows @ rows.mT + 1e-9 * torch.eye(tasks)
    for linear in (
        matrix[0],
        -torch.ones(tasks, dtype=torch.float64),
        torch.randn(tasks, dtype=torch.float64) * 10 ** torch.randint(-3, 7, (tasks,)),
    ):
        check(matrix, linear)


def test_inactive_bounds_change_nothing() -> None:
    matrix = torch.diag(torch.rand(5, dtype=torch.float64) + 1)
    z = torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(nonnegative(matrix, -matrix @ z), z)


def test_an_optimum_at_the_origin_is_exactly_zero() -> None:
    linear = torch.rand(5, dtype=torch.float64)
    assert not nonnegative(torch.eye(5, dtype=torch.float64), linear).any()
    assert not nonnegative(torch.eye(5, dtype=torch.float64), 0 * linear).any()
