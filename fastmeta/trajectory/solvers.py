"""Solvers for linear systems with a symmetric matrix that is known by its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Maps `v` `(P,)` to `A v`.
Product = Callable[[Tensor], Tensor]


class Solution(NamedTuple):
    """An approximate solution of `A x = b`.

    Attributes:
        x: `(P,)`.
        residual: `|b - A x| / |b|`, a scalar; 0 if `b` is.
    """

    x: Tensor
    residual: Tensor


def conjugate_gradient(
    product: Product, b: Tensor, steps: int, tolerance: float | None = None
) -> Solution:
    """`A^-1 b` by conjugate gradients, `steps` steps from 0.

    It stops at a direction along which `A` is not positive (Nocedal & Wright 2006, "Numerical
    Optimization", algorithm 7.1); `x` is 0 if that is the first direction.

    Args:
        product: maps `v` to `A v`.
        b: `(P,)`.
        steps: number of products; `P` give the exact solution up to rounding.
        tolerance: norm of the residual at which it stops, which waits for the device in each step;
            by default there is no such wait.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    squared = b.dot(b)  # norm of the residual
    for _ in range(steps):
        if tolerance is not None and squared <= tolerance**2:
            break
        image = product(direction)
        curvature = direction.dot(image)
        # Also at the solution, where the direction is 0 or its square underflows.
        done = (curvature <= 0) | (squared == 0)
        step_size = torch.where(done, 0, squared / curvature)
        x, residual = x + step_size * direction, residual - step_size * image
        before, squared = squared, residual.dot(residual)
        direction = torch.where(done, 0, residual + squared / before * direction)
    return Solution(x, _relative(residual, b))


def neumann(product: Product, b: Tensor, steps: int, scale: float) -> Solution:
    """`A^-1 b` by the first `steps` terms of `scale * sum_j (I - scale * A)^j b`.

    The series converges for a positive `A` if `scale < 2 / lambda`, `lambda` its largest
    eigenvalue; otherwise the residual grows beyond 1. Lorraine et al. 2020, "Optimizing Millions of
    Hyperparameters by Implicit Differentiation" (arXiv 1911.02590), algorithm 3.

    Args:
        product: maps `v` to `A v`.
        b: `(P,)`.
        steps: number of terms, a product each.
        scale: see above.
    """
    x, residual = torch.zeros_like(b), b  # the residual is the next term
    for _ in range(steps):
        x = x + scale * residual
        residual = residual - scale * product(residual)
    return Solution(x, _relative(residual, b))


def _relative(residual: Tensor, b: Tensor) -> Tensor:
    size = b.norm()
    return torch.where(size == 0, 0, residual.norm() / size)
