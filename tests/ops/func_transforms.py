"""``torch.func`` transforms of a function of tensors, and batches for ``vmap``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[..., Tensor]


def waves(function: Function) -> Function:
    """The function followed by a sum that weights every element differently."""

    def value(*tensors: Tensor) -> Tensor:
        y = function(*tensors)
        return (y.square() * torch.arange(1.0, 1 + y.numel()).view(y.shape).sin()).sum()

    return value


def gradient(f: Function) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *t: torch.func.grad(f, tuple(range(len(t))))(*t)


def along(f: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Forward mode, along a direction that depends on the point."""
    return torch.func.jvp(f, tensors, tuple(t.cos() for t in tensors))


# Of scalar functions.
TRANSFORMS: dict[str, Callable[[Function], Callable[..., object]]] = {
    "grad": gradient,
    "jvp": lambda f: lambda *t: along(f, *t),
    "jvp of grad": lambda f: lambda *t: along(gradient(f), *t),
    "grad of jvp": lambda f: gradient(lambda *t: along(f, *t)[1]),
    "grad of grad": lambda f: gradient(lambda *t: sum(g.sin().sum() for g in gradient(f)(*t))),
}


def batch_of(batch: list[list[Tensor]], dims: tuple[int | None, ...]) -> list[Tensor]:
    """The elements' inputs stacked along ``dims``; the first element's where that is ``None``."""
    columns = list(zip(*batch, strict=True))
    return [
        column[0] if dim is None else torch.stack(column, dim)
        for column, dim in zip(columns, dims, strict=True)
    ]


def element(tensors: list[Tensor], dims: tuple[int | None, ...], i: int) -> list[Tensor]:
    return [t if dim is None else t.select(dim, i) for t, dim in zip(tensors, dims, strict=True)]
