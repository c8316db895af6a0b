"""Solvers for linear systems with a structure of tensors as the vector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastmeta.gradients import FlatLayout
from fastmeta.trajectory.solvers import Product, conjugate_gradient, neumann

__all__ = ["solve_cg", "solve_inv", "solve_normal_cg"]

# From `x -> A x` and `b` to `A^-1 b`.
LinearSolver = Callable[[Callable[[Any], Any], Any], Any]


def solve_cg(
    *,
    ridge: float | None = None,
    maxiter: int | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
) -> LinearSolver:
    """A solver by conjugate gradients, for a symmetric positive `A`.

    Args:
        ridge: added to the diagonal.
        maxiter: number of products; by default 10 times the size of `b`.
        rtol: it stops where the residual is below this times `|b|`,
        atol: or below this.
    """
    return partial(_solved, partial(_cg, maxiter=maxiter, rtol=rtol, atol=atol), ridge)


def solve_normal_cg(
    *,
    ridge: float | None = None,
    maxiter: int | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
) -> LinearSolver:
    """A solver by conjugate gradients on `A' A x = A' b`, for any `A`.

    Args:
        ridge: added to the diagonal of `A' A`.
        maxiter: see `solve_cg`.
        rtol: see `solve_cg`.
        atol: see `solve_cg`.
    """

    def solve(product: Product, b: Tensor) -> Tensor:
        transposed = torch.func.vjp(product, b)[1]

        def normal(x: Tensor) -> Tensor:
            image: Tensor = transposed(product(x))[0]
            return image if ridge is None else image + ridge * x

        return _cg(normal, transposed(b)[0], maxiter=maxiter, rtol=rtol, atol=atol)

    return partial(_solved, solve, None)


def solve_inv(
    *,
    ridge: float | None = None,
    ns: bool = False,
    maxiter: int | None = None,
    alpha: float | None = None,
) -> LinearSolver:
    """A dense solver, or with `ns` a Neumann series.

    Args:
        ridge: added to the diagonal.
        ns: whether to sum the series `alpha * sum_j (I - alpha A)^j b`.
        maxiter: `j` goes up to this; 10 by default.
        alpha: see `ns`; 1 by default.
    """

    def solve(product: Product, b: Tensor) -> Tensor:
        if ns:
            terms = 1 + (10 if maxiter is None else maxiter)
            return neumann(product, b, terms, 1.0 if alpha is None else alpha).x
        columns = [product(row) for row in torch.eye(len(b), dtype=b.dtype, device=b.device)]
        found: Tensor = torch.linalg.solve(torch.stack(columns, 1), b)
        return found

    return partial(_solved, solve, ridge)


def _solved(
    solve: Callable[[Product, Tensor], Tensor],
    ridge: float | None,
    matvec: Callable[[Any], Any],
    b: Any,
) -> Any:
    leaves, structure = tree_flatten(b)
    layout = FlatLayout.of(leaves)

    def product(flat: Tensor) -> Tensor:
        image = _flat(tree_flatten(matvec(tree_unflatten(layout.views(flat), structure)))[0])
        return image if ridge is None else image + ridge * flat

    return tree_unflatten(layout.views(solve(product, _flat(leaves))), structure)


def _cg(product: Product, b: Tensor, *, maxiter: int | None, rtol: float, atol: float) -> Tensor:
    steps = 10 * len(b) if maxiter is None else maxiter
    return conjugate_gradient(product, b, steps, max(rtol * b.norm().item(), atol)).x


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])
