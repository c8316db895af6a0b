"""Small quadratic programs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def nonnegative(matrix: Tensor, linear: Tensor) -> Tensor:
    """`argmin_z z A z / 2 + q z` over `z >= 0`, by the active sets of Lawson & Hanson (1974).

    With `y = A z + q` the gradient: variables are freed one by one where `y` is most negative,
    and fixed at 0 again where the minimum over the free ones would make them negative. The
    objective decreases from set to set, so the method terminates, after about `T / 2` small
    solves; then `y >= 0` up to 1e-12 (relative to the largest of `-q` and `z`), and 0 where
    `z > 0`.

    Args:
        matrix: `A`, `(T, T)`, symmetric and positive definite, float64 on the CPU.
        linear: `q`, `(T,)`.

    Returns:
        `z`, `(T,)`.
    """
    a, q = matrix.numpy(), linear.numpy()  # a third of torch's overhead per call
    z, free = np.zeros_like(q), np.zeros(len(q), dtype=bool)
    for _ in range(10 * len(q)):
        y = np.where(free, 0, a @ z + q)
        if y.min() >= -1e-12 * max(z.max(), -q.min()):
            break
        free[y.argmin()] = True
        while True:
            target = np.zeros_like(z)
            target[free] = np.linalg.solve(a[np.ix_(free, free)], -q[free])
            blocked = free & (target < 0)
            if not blocked.any():
                break
            step = np.where(blocked, z / np.where(blocked, z - target, 1), 1)  # to the bound
            z = z + step.min() * (target - z)
            free &= step > step.min()
        z = target
    return torch.from_numpy(z)
