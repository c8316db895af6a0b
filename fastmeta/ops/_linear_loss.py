"""Sums of the cross entropies of a linear layer's outputs, and derivatives, by chunks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.backend import kernels

_CHUNK = 1 << 21  # logits held at a time
_MIN_ROWS = 16  # fewer would make the products slow


def _chunks(rows: int, classes: int) -> Iterator[slice]:
    size = max(_MIN_ROWS, _CHUNK // max(classes, 1))
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))


class _Sums:
    """Gradients of the input, filled by chunks, and of weight and bias, summed over them."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        wide = reference.accumulation_dtype(x.dtype)
        self.dx = torch.empty_like(x)
        self.dweight = torch.zeros_like(weight, dtype=wide)
        self.dbias = torch.zeros_like(bias, dtype=wide)

    def add(self, dz: Tensor, x: Tensor, bias: bool = True) -> None:
        if self.dweight.dtype == dz.dtype:
            self.dweight.addmm_(dz.mT, x)
        else:
            self.dweight += dz.mT @ x
        if bias:
            self.dbias += dz.sum(0, dtype=self.dbias.dtype)

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        dtype = self.dx.dtype
        return self.dx, self.dweight.to(dtype), self.dbias.to(dtype)


@torch.no_grad()
def loss_and_grads(
    x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, *options: Any, grads: bool = True
) -> tuple[Tensor, ...]:
    """The sum of the losses, and its gradients with respect to `x`, `weight` and `bias`."""
    sums = _Sums(x, weight, bias) if grads else None
    loss = x.new_zeros((), dtype=reference.accumulation_dtype(x.dtype))
    for rows in _chunks(len(x), len(bias)):
        z = torch.addmm(bias, x[rows], weight.mT)
        losses, logsumexp = kernels.cross_entropy_forward.default(z, target[rows], *options)
        loss += losses.sum()
        if sums is not None:
            one = torch.ones_like(losses)
            dz = kernels.cross_entropy_backward.default(one, z, target[rows], logsumexp, *options)
            torch.mm(dz, weight, out=sums.dx[rows])
            sums.add(dz, x[rows])
    return loss, *(() if sums is None else sums.results())


@torch.no_grad()
def hessian_product(
    tx: Tensor,
    tweight: Tensor,
    tbias: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    """The tangents of the gradients of `x`, `weight` and `bias`."""
    sums = _Sums(x, weight, bias)
    for rows in _chunks(len(x), len(bias)):
        z = torch.addmm(bias, x[rows], weight.mT)
        tz = torch.addmm(tbias, tx[rows], weight.mT).addmm_(x[rows], tweight.mT)
        losses, logsumexp = kernels.cross_entropy_forward.default(z, target[rows], *options)
        given = z, target[rows], logsumexp, *options
        one = torch.ones_like(losses)
        _, tdz = kernels.cross_entropy_second.default(one, None, tz, *given)
        del tz
        dz = kernels.cross_entropy_backward.default(one, *given)
        torch.mm(tdz, weight, out=sums.dx[rows])
        sums.dx[rows].addmm_(dz, tweight)
        sums.add(tdz, x[rows])
        sums.add(dz, tx[rows], bias=False)
    return sums.results()
