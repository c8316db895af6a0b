"""The ops of a transformer block besides attention, with their reference implementations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastmeta import ops, reference


@dataclass(frozen=True)
class Case:
    """An op as a function of tensors.

    Attributes:
        op: the op under test.
        reference: its reference implementation.
        shapes: of the tensors.
        dims: of a batch for `vmap`, one per tensor.
        options: keyword arguments of both.
        target: classes and shape of the targets that follow the tensors.
    """

    op: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    dims: tuple[int | None, ...]
    options: dict[str, Any] = field(default_factory=dict)
    target: tuple[int, tuple[int, ...]] | None = None

    def tensors(self, dtype: torch.dtype) -> list[Tensor]:
        return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in self.shapes]

    def functions(self) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        """Op and reference as functions of the tensors, for one random target."""
        more: tuple[Tensor, ...] = ()
        if self.target is not None:
            classes, shape = self.target
            target = torch.randint(classes, shape)
            target.view(-1)[::5] = self.options.get("ignore_index", -100)
            more = (target,)
        return (
            lambda *t: self.op(*t, *(m.to(t[0].device) for m in more), **self.options),
            lambda *t: self.reference(*t, *more, **self.options),
        )


def _layer_norm(function: Callable[..., Tensor], dims: int) -> Callable[..., Tensor]:
    return lambda x, w, b: function(x, w.shape[-dims:], w, b, 1e-3)


def _rms_norm(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, w: function(x, w.shape[-1:], w, 1e-3)


def _linear(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, w, b, y, **options: function(x, w, y, linear_bias=b, **options)


def _bare(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x: function(x, x.shape[-2:], eps=1e-3)


CASES = {
    "layer_norm": Case(
        _layer_norm(ops.layer_norm, 1),
        _layer_norm(reference.layer_norm, 1),
        ((3, 2, 5), (5,), (5,)),
        (1, 0, None),
    ),
    "layer_norm of matrices": Case(
        _layer_norm(ops.layer_norm, 2),
        _layer_norm(reference.layer_norm, 2),
        ((3, 2, 4), (2, 4), (2, 4)),
        (None, 1, 2),
    ),
    "layer_norm without parameters": Case(
        _bare(ops.layer_norm), _bare(reference.layer_norm), ((4, 2, 3),), (0,)
    ),
    "rms_norm": Case(
        _rms_norm(ops.rms_norm), _rms_norm(reference.rms_norm), ((4, 5), (5,)), (0, 0)
    ),
    "rms_norm without weight": Case(
        _bare(ops.rms_norm), _bare(reference.rms_norm), ((4, 2, 3),), (2,)
    ),
    "gelu": Case(ops.gelu, reference.gelu, ((3, 5),), (1,)),
    "gelu tanh": Case(ops.gelu, reference.gelu, ((3, 5),), (2,), {"approximate": "tanh"}),
    "silu": Case(ops.silu, reference.silu, ((3, 5),), (0,)),
    "cross_entropy": Case(
        ops.cross_entropy, reference.cross_entropy, ((6, 5),), (0,), target=(5, (6,))
    ),
    "cross_entropy of images": Case(
        ops.cross_entropy,
        reference.cross_entropy,
        ((2, 5, 3),),
        (1,),
        {"label_smoothing": 0.2, "reduction": "none", "ignore_index": 2},
        (5, (2, 3)),
    ),
    "cross_entropy, sum": Case(
        ops.cross_entropy,
        reference.cross_entropy,
        ((6, 5),),
        (2,),
        {"label_smoothing": 0.1, "reduction": "sum"},
        (5, (6,)),
    ),
    "linear_cross_entropy": Case(
        _linear(ops.linear_cross_entropy),
        _linear(reference.linear_cross_entropy),
        ((7, 4), (5, 4), (5,)),
        (0, None, 0),
        target=(5, (7,)),
    ),
    "linear_cross_entropy, smoothed sum": Case(
        _linear(ops.linear_cross_entropy),
        _linear(reference.linear_cross_entropy),
        ((3, 2, 4), (5, 4), (5,)),
        (1, 2, None),
        {"label_smoothing": 0.2, "reduction": "sum", "ignore_index": 1},
        (5, (3, 2)),
    ),
}
