"""Reference implementations of the conv ops, by PyTorch's own convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Reference implementation of [`fastmeta.ops.conv3x3`][]."""
    if weight.dim() == 4:
        return F.conv2d(x, weight, bias, stride, 1)
    groups = weight.shape[0]
    flat_bias = None if bias is None else bias.flatten()
    stacked = _stack_channels(x, groups)
    y = F.conv2d(stacked, weight.flatten(0, 1), flat_bias, stride, 1, 1, groups)
    return _batch_groups(y, groups)


def conv_input(dy: Tensor, weight: Tensor, h: int, w: int, stride: int) -> Tensor:
    """The gradient of `<dy, conv3x3(x, weight)>` with respect to `x` `(N, C, h, w)`."""
    sizes = zip((h, w), dy.shape[2:], strict=True)
    output_padding = [size - (out - 1) * stride - 1 for size, out in sizes]
    if weight.dim() == 4:
        return F.conv_transpose2d(dy, weight, None, stride, 1, output_padding)
    groups = weight.shape[0]
    stacked, weights = _stack_channels(dy, groups), weight.flatten(0, 1)
    dx = F.conv_transpose2d(stacked, weights, None, stride, 1, output_padding, groups)
    return _batch_groups(dx, groups)


def conv_weight(x: Tensor, dy: Tensor, stride: int, groups: int | None) -> tuple[Tensor, Tensor]:
    """The gradients with respect to `weight` and `bias`, per group if there are groups."""
    columns = F.unfold(x, 3, padding=1, stride=stride)
    product = dy.flatten(2) @ columns.mT
    shape = (dy.shape[1], x.shape[1], 3, 3)
    if groups is None:
        return product.sum(0).view(shape), dy.sum((0, 2, 3))
    return (
        product.unflatten(0, (groups, -1)).sum(1).view(groups, *shape),
        dy.unflatten(0, (groups, -1)).sum((1, 3, 4)),
    )


def _stack_channels(x: Tensor, groups: int) -> Tensor:
    """`(G * N, C, H, W)` as `(N, G * C, H, W)`, the input of PyTorch's grouped convolutions."""
    by_group: Tensor = x.unflatten(0, (groups, -1))
    return by_group.transpose(0, 1).flatten(1, 2)


def _batch_groups(x: Tensor, groups: int) -> Tensor:
    by_group: Tensor = x.unflatten(1, (groups, -1))
    return by_group.transpose(0, 1).flatten(0, 1)
