"""Inputs of 3x3 convolutions, and tolerances of their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from fastmeta import ops, reference

# (N, C, O, H, W), not multiples of vectors, 2x2 tiles and blocks of 48 pixels. With stride 1, the
# second list is computed by Winograd's method.
DIRECT = [
    *((1, 1, 1, h, w) for h, w in product((1, 2, 3, 5, 7), repeat=2)),
    *((33, 3, 2, 1, 2), (1, 17, 31, 3, 14), (5, 1, 64, 14, 5), (33, 33, 17, 2, 3)),
    *((5, 3, 17, 31, 33), (1, 64, 65, 7, 5), (2, 65, 1, 33, 14), (1, 16, 33, 1, 31)),
    *((2, 5, 32, 31, 33), (5, 15, 16, 7, 7)),
]
WINOGRAD = [
    *((1, 16, 16, 4, 4), (5, 16, 17, 14, 7), (33, 17, 16, 5, 14)),
    *((1, 65, 64, 7, 33), (5, 33, 31, 31, 33), (2, 64, 65, 14, 14), (2, 17, 16, 9, 61)),
]
# Relative to the result for the absolute values of all inputs.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6}


def conv_inputs(
    shape: Sequence[int], dtype: torch.dtype = torch.float64, groups: int | None = None
) -> list[Tensor]:
    """``x``, ``weight`` and ``bias`` for ``(N, C, O, H, W)``; each group has its own."""
    n, channels, out, h, w = shape
    lead = () if groups is None else (groups,)
    sizes = ((n * (groups or 1), channels, h, w), (*lead, out, channels, 3, 3), (*lead, out))
    return [torch.randn(size, dtype=dtype) for size in sizes]


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    return ops.conv3x3(x, weight, bias, stride=stride)


def reference_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1
) -> Tensor:
    return reference.conv3x3(x, weight, bias, stride)


def derivatives(
    op: Callable[..., Tensor], tensors: Sequence[Tensor], up: Tensor, moves: Sequence[Tensor]
) -> list[Tensor]:
    """The output, its gradients for ``up``, and the gradients of those along ``moves``."""
    *own, up = (t.detach().requires_grad_() for t in (*tensors, up))
    y = op(*own)
    first = torch.autograd.grad(y, own, up, create_graph=True)
    second = torch.autograd.grad(first, [up, *own[:2]], moves)
    return [t.detach() for t in (y, *first, *second)]


def directions(
    tensors: Sequence[Tensor], stride: int = 1
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Arguments of ``derivatives``: the tensors, a gradient of the output, and directions."""
    up = torch.randn_like(reference_conv(*tensors, stride=stride))
    return list(tensors), up, [torch.randn_like(t) for t in tensors]


def exact(
    op: Callable[..., Tensor], tensors: Sequence[Tensor], up: Tensor, moves: Sequence[Tensor]
) -> tuple[list[Tensor], list[float]]:
    """The derivatives in float64, and the norm of each for the absolute values of all inputs."""
    wide = ([t.double() for t in tensors], up.double(), [m.double() for m in moves])
    positive = ([t.abs() for t in wide[0]], wide[1].abs(), [m.abs() for m in wide[2]])
    return derivatives(op, *wide), [d.norm().item() for d in derivatives(op, *positive)]
