"""Attention in several configurations, and derivatives of functions like it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]

# Relative to the norm of the largest result of a kind.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 8 * 2.0**-8,  # outputs are rounded, and enter the backward passes so
    torch.float16: 8 * 2.0**-11,
}


@dataclass(frozen=True)
class Config:
    """Sizes and options of one call.

    Attributes:
        queries, keys: numbers of tokens.
        heads, kv_heads: of queries, and of keys and values.
        width, value_width: of a head.
        mask: `"keep"`, `"padding"`, `"add"` or `None`.
    """

    queries: int
    keys: int
    heads: int = 2
    kv_heads: int = 2
    width: int = 16
    value_width: int = 16
    causal: bool = False
    window: int | None = None
    mask: str | None = None
    scale: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"causal": self.causal, "window": self.window, "scale": self.scale}

    def tensors(self, dtype: torch.dtype) -> list[Tensor]:
        shapes = (
            (2, self.heads, self.queries, self.width),
            (2, self.kv_heads, self.keys, self.width),
            (2, self.kv_heads, self.keys, self.value_width),
        )
        return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]

    def make_mask(self, dtype: torch.dtype) -> Tensor | None:
        if self.mask == "keep":  # of one query: no key at all
            keep = torch.rand(2, 1, self.queries, self.keys) > 0.4
            keep[1, 0, self.queries // 2] = False
            return keep
        if self.mask == "padding":
            return torch.arange(self.keys) < torch.tensor([self.keys, 1]).view(2, 1, 1, 1)
        if self.mask == "add":
            bias = torch.randn(self.heads, self.queries, self.keys, dtype=torch.float64)
            bias[:, :, ::3] = -torch.inf
            bias[:, :, -1] = 0
            return bias.to(dtype)
        return None


CONFIGS = {
    "one token": Config(1, 1),
    "31": Config(31, 31),
    "33 causal": Config(33, 33, causal=True),
    "127 of width 64": Config(127, 127, width=64, value_width=64, causal=True),
    "width 128, value width 40": Config(65, 49, width=128, value_width=40),
    "odd width": Config(20, 70, width=17, value_width=5),
    "more keys": Config(33, 127, causal=True),
    "more queries": Config(127, 31, causal=True),
    "grouped queries": Config(70, 60, heads=6, kv_heads=2, causal=True),
    "causal window": Config(150, 150, causal=True, window=20),
    "window": Config(127, 140, window=7),
    "window of one": Config(70, 70, window=1, causal=True),
    "boolean mask": Config(70, 65, mask="keep"),
    "boolean mask, causal window": Config(70, 65, mask="keep", causal=True, window=9),
    "padding": Config(65, 127, mask="padding", heads=4, kv_heads=1),
    "additive mask": Config(70, 65, mask="add"),
    "scale": Config(31, 33, scale=1.5),
    "many tiles": Config(300, 290, causal=True, kv_heads=1),
}


def derivatives(function: Function, tensors: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    """Output, gradients, and gradients of the gradients along given directions.

    `upstream`: the gradient of the output, followed by those of the gradients of `q`, `k` and `v`.
    """
    leaves = [t.detach().requires_grad_() for t in tensors]
    dout, *directions = upstream
    dout = dout.detach().requires_grad_()
    out = function(*leaves)
    grads = torch.autograd.grad(out, leaves, dout, create_graph=True)
    return [out, *grads, *torch.autograd.grad(grads, [*leaves, dout], directions)]


def tangents(function: Function, tensors: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    """The tangents of the output and of the gradients, `dout` moving along its cosine."""
    dout, *directions = upstream

    def both(dout: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        out, vjp = torch.func.vjp(function, *tensors)
        return out, *vjp(dout)

    primals = (dout, *tensors)
    return list(torch.func.jvp(both, primals, (dout.cos(), *directions))[1])


def check(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Compares results with those in float64."""
    size = max(float(e.detach().norm()) for e in expected)
    for f, e in zip(found, expected, strict=True):
        assert (f.dtype, f.shape) == (dtype, e.shape)
        error = (f.detach().double() - e.detach()).norm()
        assert error <= TOLERANCE[dtype] * max(float(e.detach().norm()), 0.1 * size)
