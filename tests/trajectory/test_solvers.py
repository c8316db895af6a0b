"""Conjugate gradients and the Neumann series against dense solves."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmeta.trajectory.solvers import conjugate_gradient, neumann


@settings(max_examples=40)
@given(size=st.integers(1, 12), kinds=st.integers(1, 4))
def test_converges_in_as_many_steps_as_distinct_eigenvalues(size: int, kinds: int) -> None:
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    values = 1 + torch.arange(size, dtype=torch.float64) % kinds
    matrix, b = basis * values @ basis.T, torch.randn(size, dtype=torch.float64)
    for steps in (kinds, kinds + 20, kinds + 60):  # also beyond the solution
        x, residual = conjugate_gradient(matrix.mv, b, steps)
        torch.testing.assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-9, atol=1e-9)
        assert residual < 1e-9


def test_the_solver_stops_at_an_indefinite_matrix() -> None:
    b = torch.tensor([1.0, 0.0, 0.0])
    for first in (torch.diag(torch.tensor([-1.0, 2.0, 3.0])), torch.zeros(3, 3)):
        x, residual = conjugate_gradient(first.mv, b, 5)
        assert torch.equal(x, 0 * b)
        assert residual == 1
    matrix = torch.diag(torch.tensor([2.0, -1.0]))
    b = torch.tensor([3.0, 1.0])
    one, residual = conjugate_gradient(matrix.mv, b, 1)
    torch.testing.assert_close(one, b * (b.dot(b) / b.dot(matrix.mv(b))))
    torch.testing.assert_close(residual, (b - matrix.mv(one)).norm() / b.norm())
    assert torch.equal(conjugate_gradient(matrix.mv, b, 9).x, one)


def test_the_solver_propagates_non_finite_values() -> None:
    b = torch.tensor([1.0, 2.0])
    for solution in (
        conjugate_gradient(torch.eye(2).mv, 0 * b, 3),
        neumann(torch.eye(2).mv, 0 * b, 3, 0.5),
    ):
        assert torch.equal(solution.x, 0 * b)
        assert solution.residual == 0
    assert conjugate_gradient(torch.full((2, 2), torch.nan).mv, b, 3).x.isnan().any()
    assert conjugate_gradient(torch.eye(2).mv, b / 0, 3).x.isnan().any()


def test_the_solver_never_synchronizes() -> None:
    with FakeTensorMode():  # raises an error if a value is read
        assert conjugate_gradient(torch.eye(3).mv, torch.ones(3), 4).x.shape == (3,)
        assert neumann(torch.eye(3).mv, torch.ones(3), 4, 0.5).x.shape == (3,)


def test_neumann_series() -> None:
    """Its first terms, and the inverse where it converges."""
    basis = torch.linalg.qr(torch.randn(5, 5).double()).Q
    matrix, b = basis * torch.linspace(0.5, 2, 5).double() @ basis.T, torch.randn(5).double()
    step = torch.eye(5).double() - 0.4 * matrix
    x, residual = neumann(matrix.mv, b, 3, 0.4)
    torch.testing.assert_close(x, 0.4 * (b + step @ b + step @ step @ b))
    torch.testing.assert_close(residual, (b - matrix @ x).norm() / b.norm())
    x, residual = neumann(matrix.mv, b, 200, 0.9)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b))
    assert residual < 1e-12
    assert neumann(matrix.mv, b, 50, 1.5).residual > 1
