"""Torch twins of the conv ops: torch's own convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """See :func:`fastmeta.ops.conv3x3`."""
    if weight.dim() == 4:
        return F.conv2d(x, weight, bias, stride, 1)
    groups = weight.shape[0]
    flat_bias = None if bias is None else bias.flatten()
    y = F.conv2d(_side_by_side(x, groups), weight.flatten(0, 1), flat_bias, stride, 1, 1, groups)
    return _one_by_one(y, groups)


def conv_input(dy: Tensor, weight: Tensor, h: int, w: int, stride: int) -> Tensor:
    """The gradient of ``<dy, conv3x3(x, weight)>`` in ``x``, whose images are ``h`` x ``w``."""
    rest = [size - (out - 1) * stride - 1 for size, out in zip((h, w), dy.shape[2:], strict=True)]
    if weight.dim() == 4:
        return F.conv_transpose2d(dy, weight, None, stride, 1, rest)
    groups = weight.shape[0]
    beside = _side_by_side(dy, groups)
    dx = F.conv_transpose2d(beside, weight.flatten(0, 1), None, stride, 1, rest, groups)
    return _one_by_one(dx, groups)


def conv_weight(x: Tensor, dy: Tensor, stride: int, groups: int | None) -> tuple[Tensor, Tensor]:
    """The gradient in ``weight``, and the one in ``bias``: of each group if there are any."""
    columns = F.unfold(x, 3, padding=1, stride=stride)
    product = dy.flatten(2) @ columns.mT
    shape = (dy.shape[1], x.shape[1], 3, 3)
    if groups is None:
        return product.sum(0).view(shape), dy.sum((0, 2, 3))
    return (
        product.unflatten(0, (groups, -1)).sum(1).view(groups, *shape),
        dy.unflatten(0, (groups, -1)).sum((1, 3, 4)),
    )


def _side_by_side(x: Tensor, groups: int) -> Tensor:
    """``(G * N, C, H, W)`` as ``(N, G * C, H, W)``, which torch's grouped convolutions take."""
    by_group: Tensor = x.unflatten(0, (groups, -1))
    return by_group.transpose(0, 1).flatten(1, 2)


def _one_by_one(x: Tensor, groups: int) -> Tensor:
    by_group: Tensor = x.unflatten(1, (groups, -1))
    return by_group.transpose(0, 1).flatten(0, 1)
