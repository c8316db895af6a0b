"""Reference implementation of the meta-step of a multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.reference._meta_step import meta_step

# The compiled op identifies activations and losses by their positions here.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
}


def mlp_step(
    params: Sequence[Tensor],
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    activations: Sequence[str],
    loss: str,
    lr: float,
    steps: int,
    differentiated: Sequence[Sequence[bool]] | None = None,
    lam_d: float = 1.0,
    lam_c: float = 0.0,
    lam_2: float = 0.0,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Reference implementation of [`fastmeta.ops.mlp_step`][].

    Without inner steps, the mean inner gradients are `None`.
    """
    evaluate = partial(_loss, activations=activations, loss=LOSSES[loss])
    masks = differentiated or [[True] * (len(activations) + 1)]
    layers = list(accumulate(p.dim() > 1 for p in params))  # of each parameter, from 1
    return meta_step(
        evaluate,
        params,
        (support_x, support_y, query_x, query_y),
        lr,
        steps,
        [[mask[layer - 1] for layer in layers] for mask in masks],
        lam_d,
        lam_c,
        lam_2,
    )


def _loss(
    params: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    step: int,
    *,
    activations: Sequence[str],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    remaining, names = list(params), list(activations)
    while remaining:
        weight = remaining.pop(0)
        bias = remaining.pop(0) if remaining and remaining[0].dim() == 1 else None
        x = F.linear(x, weight, bias)
        x = ACTIVATIONS[names.pop(0)](x) if remaining else x
    return loss(x, y), x
