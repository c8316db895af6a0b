"""Activations of a sequence of layers and their first two derivatives, without autograd.

Without scalars in `torch.where`, which would be copied to a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.reference.mlp import ACTIVATIONS
from fastmeta.reference.sequence import SequenceLayer

aten = torch.ops.aten

# Of x and y = f(x): `f'(x) direction`, and f''(x) of those that are not linear in pieces.
_FIRST: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda d, x, y: aten.threshold_backward.default(d, x, 0),
    "tanh": lambda d, x, y: aten.tanh_backward.default(d, y),
    "elu": lambda d, x, y: aten.elu_backward.default(d, 1, 1, 1, False, x),
    "silu": lambda d, x, y: aten.silu_backward.default(d, x),
    "sigmoid": lambda d, x, y: aten.sigmoid_backward.default(d, y),
    "gelu": lambda d, x, y: aten.gelu_backward.default(d, x),
}
_SECOND: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": lambda x, y: -2 * y * (1 - y * y),
    "elu": lambda x, y: x.exp().masked_fill_(x >= 0, 0),
    "silu": lambda x, y: _silu_curvature(x, x.sigmoid()),
    "sigmoid": lambda x, y: y * (1 - y) * (1 - 2 * y),
    "gelu": lambda x, y: _gelu_curvature(x.clamp(-40, 40).square()),
}


def activate(layer: SequenceLayer, x: Tensor) -> Tensor:
    """`f(x)`."""
    if layer.activation == "leaky_relu":
        return F.leaky_relu(x, layer.slope)
    return ACTIVATIONS[layer.activation](x)


def slope(layer: SequenceLayer, direction: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`f'(x) direction`: the gradient of `x`, or the tangent of `y`."""
    if layer.activation == "leaky_relu":
        found: Tensor = aten.leaky_relu_backward.default(direction, x, layer.slope, False)
        return found
    return _FIRST[layer.activation](direction, x, y)


def curvature(layer: SequenceLayer, x: Tensor, y: Tensor) -> Tensor | None:
    """`f''(x)`; `None` if it is 0 everywhere."""
    second = _SECOND.get(layer.activation)
    return None if second is None else second(x, y)


def _silu_curvature(x: Tensor, s: Tensor) -> Tensor:
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _gelu_curvature(square: Tensor) -> Tensor:
    return torch.exp(-0.5 * square) * (2 - square) / math.sqrt(2 * math.pi)
