"""Reference implementations of GELU and SiLU: plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def activation(x: Tensor, kind: str) -> Tensor:
    """`"gelu"`, `"gelu_tanh"` or `"silu"` of every element."""
    if kind == "silu":
        return x * torch.sigmoid(x)
    if kind == "gelu":
        return 0.5 * x * torch.erfc(-x * math.sqrt(0.5))
    return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Reference implementation of [`fastmeta.ops.gelu`][]."""
    return activation(x, "gelu_tanh" if approximate == "tanh" else "gelu")


def silu(x: Tensor) -> Tensor:
    """Reference implementation of [`fastmeta.ops.silu`][]."""
    return activation(x, "silu")


def activation_backward(dout: Tensor, x: Tensor, kind: str) -> Tensor:
    """The gradient of `<dout, f(x)>`, which is also the tangent of `f(x)` along `dout`."""
    grad: Tensor = torch.func.vjp(lambda x: activation(x, kind), x)[1](dout)[0]
    return grad


def activation_backward_tangent(
    dout: Tensor, tdout: Tensor, tx: Tensor, x: Tensor, kind: str
) -> Tensor:
    """The directional derivative of the gradient along `(tdout, tx)` (JVP)."""
    tangent: Tensor = torch.func.jvp(
        lambda dout, x: activation_backward(dout, x, kind), (dout, x), (tdout, tx)
    )[1]
    return tangent


def activation_second(dout: Tensor, tx: Tensor, x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The directional derivatives along `tx` of the gradient and of `f(x)` (JVP)."""
    zero = torch.zeros_like(dout)
    tangent = activation_backward_tangent(dout, zero, tx, x, kind)
    return tangent, activation_backward(tx, x, kind)
