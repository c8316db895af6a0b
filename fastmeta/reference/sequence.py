"""Reference implementation of the meta-step of a sequence of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from fastmeta.reference._meta_step import meta_step
from fastmeta.reference.mlp import ACTIVATIONS, LOSSES

# The compiled op identifies kinds of layers by their positions here.
KINDS = ("conv", "norm", "activation", "max_pool", "mean_pool", "linear")


class SequenceLayer(NamedTuple):
    """A layer of [`fastmeta.ops.sequence_step`][].

    Attributes:
        kind: `"conv"`, a 3x3 convolution with padding 1; `"norm"`, batch normalisation with batch
            statistics, then perhaps ReLU and 2x2 max-pooling; `"activation"`; `"max_pool"` or
            `"mean_pool"`, with windows as wide as their stride; or `"linear"`, which flattens.
        weight: index of its weight in the parameters; its bias, if it has one, is the next.
        bias: whether it has a bias. `"norm"` always has.
        stride: of a convolution, 1 or 2.
        window: width of the windows of pooling; `None` for a mean over the map.
        relu: whether ReLU is part of `"norm"`.
        pool: whether `"norm"` ends with max-pooling, which needs ReLU.
        eps: of `"norm"`.
        sets: of `"norm"`: one weight and bias per inner step, one after the other; further steps
            and the query set have the last.
        activation: one of those of [`fastmeta.ops.mlp_step`][], or `"leaky_relu"`.
        slope: of leaky ReLU, for negative inputs.
    """

    kind: str
    weight: int = 0
    bias: bool = True
    stride: int = 1
    window: int | None = None
    relu: bool = True
    pool: bool = False
    eps: float = 1e-5
    sets: int = 1
    activation: str = "relu"
    slope: float = 0.01


def sequence_step(
    params: Sequence[Tensor],
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    layers: Sequence[SequenceLayer],
    loss: str,
    lr: float,
    steps: int,
    differentiated: Sequence[Sequence[bool]] | None = None,
    lam_d: float = 1.0,
    lam_c: float = 0.0,
    lam_2: float = 0.0,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Reference implementation of [`fastmeta.ops.sequence_step`][], without the statistics.

    Without inner steps, the mean inner gradients are `None`.
    """
    return meta_step(
        partial(_evaluate, layers=layers, loss=LOSSES[loss]),
        params,
        (support_x, support_y, query_x, query_y),
        lr,
        steps,
        differentiated or [[True] * len(params)],
        lam_d,
        lam_c,
        lam_2,
    )


def _evaluate(
    params: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    step: int,
    *,
    layers: Sequence[SequenceLayer],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    for layer in layers:
        x = _run(layer, params, x, step)
    return loss(x, y), x


def _run(layer: SequenceLayer, params: Sequence[Tensor], x: Tensor, step: int) -> Tensor:
    at = layer.weight + 2 * (layer.sets - 1 if step < 0 else min(step, layer.sets - 1))
    if layer.kind in ("max_pool", "mean_pool"):
        if layer.window is None:
            return x.mean((2, 3), keepdim=True)
        return (F.max_pool2d if layer.kind == "max_pool" else F.avg_pool2d)(x, layer.window)
    if layer.kind == "activation":
        if layer.activation == "leaky_relu":
            return F.leaky_relu(x, layer.slope)
        return ACTIVATIONS[layer.activation](x)
    weight, bias = params[at], params[at + 1] if layer.bias else None
    if layer.kind == "conv":
        return F.conv2d(x, weight, bias, layer.stride, padding=1)
    if layer.kind == "linear":
        return F.linear(x.flatten(1), weight, bias)
    x = F.batch_norm(x, None, None, weight, bias, True, eps=layer.eps)
    x = F.relu(x) if layer.relu else x
    return F.max_pool2d(x, 2) if layer.pool else x
