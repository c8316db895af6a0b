"""The other layers of a sequence, see `_sequence_affine.py`, and all of them by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from fastmeta.backend import kernels
from fastmeta.ops._activations import activate, curvature, slope
from fastmeta.ops._sequence_affine import Convolution, Gradients, Layer, Linear
from fastmeta.reference.sequence import SequenceLayer

aten = torch.ops.aten
_CHANNEL = (0, 2, 3)  # the dimensions of its values


class Norm(Layer):
    """Batch normalisation, ReLU and perhaps max-pooling. Never the first layer."""

    more: tuple[Tensor, Tensor] | None = None

    @override
    def forward(self, x: Tensor) -> Tensor:
        inputs = (x, *(p.flatten() for p in self.params))
        how = (self.spec.eps, self.spec.pool)
        z, self.mean, self.var = kernels.norm_forward.default(*inputs, *how)
        self.inputs = (*inputs, self.mean, self.var, *how)
        output: Tensor = z
        return output

    @override
    def backward(self, dy: Tensor, through: bool) -> Gradients:
        self.dy = dy
        return self._adjoint(dy)

    @override
    def tangent(self, u: Tensor | None, v: Sequence[Tensor] | None) -> Tensor:
        u = torch.zeros_like(self.inputs[0]) if u is None else u
        v = [torch.zeros_like(p) for p in self.params] if v is None else v
        along = [p.flatten() for p in v]
        ty, dx, dw = kernels.norm_second.default(self.dy, u, *along, *self.inputs)
        self.more = dx, dw.view_as(self.params[0])
        tangent: Tensor = ty
        return tangent

    @override
    def backward_tangent(self, rdy: Tensor, through: bool) -> Gradients:
        rdx, products = self._adjoint(rdy)
        if self.more is not None:
            rdx += self.more[0]
            products[0] += self.more[1]
        return rdx, products

    def _adjoint(self, dy: Tensor) -> Gradients:
        dx, *grads = kernels.norm_backward.default(dy, *self.inputs)
        return dx, [g.view_as(p) for g, p in zip(grads, self.params, strict=True)]


class PlainNorm(Norm):
    """Batch normalisation alone, in the terms of csrc/include/fastmeta/norm.h."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.var, self.mean = torch.var_mean(x, _CHANNEL, correction=0)
        weight, bias = (p.flatten() for p in self.params)
        self.r = (self.var + self.spec.eps).rsqrt()
        self.s = weight * self.r
        self.h = (x - _wide(self.mean)) * _wide(self.r)
        self.count = x.numel() // len(weight)
        return self.h * _wide(weight) + _wide(bias)

    @override
    def tangent(self, u: Tensor | None, v: Sequence[Tensor] | None) -> Tensor:
        h, dy, r, s = self.h, self.dy, self.r, self.s
        u = torch.zeros_like(h) if u is None else u
        p, q = (torch.zeros_like(r) if v is None else v[i].flatten() for i in range(2))
        mean_u, mean_dy = u.mean(_CHANNEL), dy.mean(_CHANNEL)
        b, c = (u * h).mean(_CHANNEL), (dy * h).mean(_CHANNEL)
        rest = (u * dy).mean(_CHANNEL) - mean_u * mean_dy - b * c
        k_u, k_y = -s * r * c, p * r - s * r * b
        k_h = -s * r * rest - k_u * b - k_y * c
        dx = _wide(k_u) * u + _wide(k_y) * dy + _wide(k_h) * h
        dx -= _wide(k_u * mean_u + k_y * mean_dy)
        self.more = dx, (self.count * r * rest).view_as(self.params[0])
        return _wide(s) * u + _wide(p - s * b) * h + _wide(q - s * mean_u)

    @override
    def _adjoint(self, dy: Tensor) -> Gradients:
        mean, along = dy.mean(_CHANNEL), (dy * self.h).mean(_CHANNEL)
        dx = _wide(self.s) * (dy - _wide(mean) - self.h * _wide(along))
        grads = (self.count * along, self.count * mean)
        return dx, [g.view_as(p) for g, p in zip(grads, self.params, strict=True)]


def _wide(values: Tensor) -> Tensor:
    """One value per channel, to be broadcast over its pixels."""
    return values[:, None, None]


class Activation(Layer):
    """Elementwise."""

    more: Tensor | None = None

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.x, self.y = x, activate(self.spec, x)
        return self.y

    @override
    def backward(self, dy: Tensor, through: bool) -> Gradients:
        self.dy = dy
        return self._along(dy), []

    @override
    def tangent(self, u: Tensor | None, v: Sequence[Tensor] | None) -> Tensor:
        assert u is not None
        second = curvature(self.spec, self.x, self.y)
        self.more = None if second is None else second.mul_(u).mul_(self.dy)
        return self._along(u)

    @override
    def backward_tangent(self, rdy: Tensor, through: bool) -> Gradients:
        rdx = self._along(rdy)
        return rdx if self.more is None else rdx.add_(self.more), []

    def _along(self, direction: Tensor) -> Tensor:
        return slope(self.spec, direction, self.x, self.y)


class MaxPool(Layer):
    """Max-pooling; the tangent is that of the maxima."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        assert self.spec.window is not None
        self.x = x
        y, self.indices = F.max_pool2d(x, self.spec.window, return_indices=True)
        return y

    @override
    def backward(self, dy: Tensor, through: bool) -> Gradients:
        how = [self.spec.window] * 2, [self.spec.window] * 2, [0, 0], [1, 1], False
        pull = aten.max_pool2d_with_indices_backward.default
        return pull(dy, self.x, *how, self.indices), []

    @override
    def tangent(self, u: Tensor | None, v: Sequence[Tensor] | None) -> Tensor:
        assert u is not None
        return u.flatten(2).gather(2, self.indices.flatten(2)).view(self.indices.shape)


class MeanPool(Layer):
    """The mean over windows, or over the map."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        window = self.spec.window
        return x.mean((2, 3), keepdim=True) if window is None else F.avg_pool2d(x, window)

    @override
    def backward(self, dy: Tensor, through: bool) -> Gradients:
        if self.spec.window is None:
            return (dy / self.x.shape[2:].numel()).expand_as(self.x), []
        how = [self.spec.window] * 2, [self.spec.window] * 2, [0, 0], False, True, None
        return aten.avg_pool2d_backward.default(dy, self.x, *how), []


def layer_of(spec: SequenceLayer, params: Sequence[Tensor]) -> Layer:
    """A layer with its parameters, see `Layer`."""
    alone = spec.kind == "norm" and not spec.relu
    return PlainNorm(spec, params) if alone else _LAYERS[spec.kind](spec, params)


# By the names in fastmeta.reference.sequence.KINDS.
_LAYERS: dict[str, type[Layer]] = {
    "conv": Convolution,
    "norm": Norm,
    "activation": Activation,
    "max_pool": MaxPool,
    "mean_pool": MeanPool,
    "linear": Linear,
}
