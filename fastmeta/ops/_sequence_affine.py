"""Layers of a sequence with a weight and perhaps a bias, for the tasks of a meta-batch at once.

A layer has its forward and backward pass, and the tangents of both along a direction of the
parameters (the R-operator, Pearlmutter 1994), in plain tensor operations: without autograd and
without reading a value on the host.

The images of all tasks form one batch `(n, T * channels, h, w)`: a convolution has one group per
task, and a normalisation, whose statistics are those of a channel, needs none. Features are
`(T, n, features)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from fastmeta.reference.sequence import SequenceLayer

aten = torch.ops.aten
# The gradient of a layer's input, `None` if it is not wanted, and those of its parameters.
Gradients = tuple[Any, list[Tensor]]


class Layer:
    """A layer in one evaluation of the network, with what its derivatives need.

    By default it is linear in its input and has no parameters.

    Args:
        spec: the layer.
        params: its weight `(T, *shape)`, and its bias if it has one.
    """

    def __init__(self, spec: SequenceLayer, params: Sequence[Tensor]) -> None:
        self.spec = spec
        self.params = params

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        raise NotImplementedError

    def backward(self, dy: Tensor, through: bool) -> Gradients:
        """The gradients for that of the output.

        Args:
            dy: gradient of the output.
            through: whether that of the input is wanted.
        """
        raise NotImplementedError

    def tangent(self, u: Tensor | None, v: Sequence[Tensor] | None) -> Tensor:
        """The tangent of the output. Follows `backward`.

        Args:
            u: tangent of the input; `None` for zero, where `v` is given.
            v: those of the parameters; `None` for zero.
        """
        assert u is not None
        return self.forward(u)

    def backward_tangent(self, rdy: Tensor, through: bool) -> Gradients:
        """The tangents of these gradients, for that of `dy`.

        Along zero, if `tangent` was not called before.
        """
        return self.backward(rdy, through)


class Affine(Layer):
    """`product(x, weight) + bias`, where `product` is bilinear."""

    u: Tensor | None = None
    v: Sequence[Tensor] | None = None

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Plus the bias, if it is given."""
        raise NotImplementedError

    def for_input(self, dy: Tensor, weight: Tensor) -> Tensor:
        """The gradient of `<dy, product(x, weight)>` with respect to `x`."""
        raise NotImplementedError

    def for_weight(self, dy: Tensor, x: Tensor) -> Tensor:
        """That with respect to `weight`."""
        raise NotImplementedError

    def for_bias(self, dy: Tensor) -> Tensor:
        """That with respect to a bias."""
        raise NotImplementedError

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return self.product(x, *self.params)

    @override
    def backward(self, dy: Tensor, through: bool) -> Gradients:
        self.dy = dy
        return self._adjoint(dy, through)

    @override
    def tangent(self, u: Tensor | None, v: Sequence[Tensor] | None) -> Tensor:
        self.u, self.v = u, v
        terms = [] if v is None else [self.product(self.x, *v)]
        terms += [] if u is None else [self.product(u, self.params[0])]
        return terms[0] if len(terms) == 1 else terms[0].add_(terms[1])

    @override
    def backward_tangent(self, rdy: Tensor, through: bool) -> Gradients:
        rdx, products = self._adjoint(rdy, through)
        if self.u is not None:
            products[0] += self.for_weight(self.dy, self.u)
        if self.v is not None and through:
            rdx += self.for_input(self.dy, self.v[0])
        return rdx, products

    def _adjoint(self, dy: Tensor, through: bool) -> Gradients:
        dx = self.for_input(dy, self.params[0]) if through else None
        bias = [self.for_bias(dy)] if self.spec.bias else []
        return dx, [self.for_weight(dy, self.x), *bias]


class Convolution(Affine):
    """3x3, with padding 1."""

    @override
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        flat = None if bias is None else bias.flatten()
        return F.conv2d(x, weight.flatten(0, 1), flat, self.spec.stride, 1, 1, len(weight))

    @override
    def for_input(self, dy: Tensor, weight: Tensor) -> Tensor:
        return self._gradients(dy, self.x, weight, 0)

    @override
    def for_weight(self, dy: Tensor, x: Tensor) -> Tensor:
        return self._gradients(dy, x, self.params[0], 1).view(self.params[0].shape)

    @override
    def for_bias(self, dy: Tensor) -> Tensor:
        return dy.sum((0, 2, 3)).view(self.params[1].shape)

    def _gradients(self, dy: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
        stride, wanted = [self.spec.stride] * 2, [which == 0, which == 1, False]
        how = stride, [1, 1], [1, 1], False, [0, 0], len(weight), wanted
        gradients = aten.convolution_backward.default(dy, x, weight.flatten(0, 1), None, *how)
        found: Tensor = gradients[which]
        return found


class Linear(Affine):
    """A linear layer, which flattens."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.image = x.shape[1:] if x.dim() == 4 else None
        return super().forward(self._rows(x))

    @override
    def tangent(self, u: Tensor | None, v: Sequence[Tensor] | None) -> Tensor:
        return super().tangent(None if u is None else self._rows(u), v)

    @override
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)

    @override
    def for_input(self, dy: Tensor, weight: Tensor) -> Tensor:
        rows = dy @ weight
        if self.image is None:
            return rows
        return rows.transpose(0, 1).reshape(rows.shape[1], *self.image)

    @override
    def for_weight(self, dy: Tensor, x: Tensor) -> Tensor:
        return dy.mT @ x

    @override
    def for_bias(self, dy: Tensor) -> Tensor:
        return dy.sum(1)

    def _rows(self, x: Tensor) -> Tensor:
        """`(T, n, features)`."""
        if self.image is None:
            return x
        return x.reshape(len(x), len(self.params[0]), -1).transpose(0, 1)
