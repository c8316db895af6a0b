"""Reference implementations of AdamW's update and of its adjoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.reference.dtypes import accumulation_dtype


def adamw_step(
    theta: Sequence[Tensor],
    grad: Sequence[Tensor],
    mean: Sequence[Tensor],
    square: Sequence[Tensor],
    lr: float,
    beta_1: float,
    beta_2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> list[Tensor]:
    """Reference implementation of [`fastmeta.ops.adamw_step`][], with the results in one list."""
    acc = accumulation_dtype(theta[0].dtype)
    rate, bias_2 = lr / (1 - beta_1 ** (step + 1)), 1 - beta_2 ** (step + 1)
    results: list[list[Tensor]] = [[], [], []]
    for tensors in zip(theta, grad, mean, square, strict=True):
        t, g, m, s = (x.to(acc) for x in tensors)
        m = beta_1 * m + (1 - beta_1) * g
        s = beta_2 * s + (1 - beta_2) * g * g
        moved = (1 - lr * weight_decay) * t - rate * m / (root(s / bias_2) + eps)
        for found, kind in zip((moved, m, s), results, strict=True):
            kind.append(found.to(tensors[0].dtype))
    return [t for kind in results for t in kind]


def adamw_adjoint(
    grad: Sequence[Tensor],
    mean: Sequence[Tensor],
    square: Sequence[Tensor],
    d_theta: Sequence[Tensor],
    d_mean: Sequence[Tensor],
    d_square: Sequence[Tensor],
    lr: float,
    beta_1: float,
    beta_2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> list[Tensor]:
    """Reference implementation of [`fastmeta.ops.adamw_adjoint`][], with the results in a list."""
    acc = accumulation_dtype(grad[0].dtype)
    rate, bias_2 = lr / (1 - beta_1 ** (step + 1)), 1 - beta_2 ** (step + 1)
    results: list[list[Tensor]] = [[], [], [], []]
    for tensors in zip(grad, mean, square, d_theta, d_mean, d_square, strict=True):
        g, m, s, dt, dm, ds = (x.to(acc) for x in tensors)
        m = beta_1 * m + (1 - beta_1) * g
        s = beta_2 * s + (1 - beta_2) * g * g
        deviation = root(s / bias_2)
        width = deviation + eps
        scaled = rate * dt / width
        dm = dm - scaled
        positive = deviation > 0
        slope = scaled * m / width / (2 * bias_2 * torch.where(positive, deviation, 1))
        ds = ds + torch.where(positive, slope, 0)
        dg = (1 - beta_1) * dm + 2 * (1 - beta_2) * g * ds
        found = ((1 - lr * weight_decay) * dt, dg, beta_1 * dm, beta_2 * ds)
        for value, kind in zip(found, results, strict=True):
            kind.append(value.to(tensors[0].dtype))
    return [t for kind in results for t in kind]


def root(square: Tensor) -> Tensor:
    """The square root with derivative 0 at 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)
