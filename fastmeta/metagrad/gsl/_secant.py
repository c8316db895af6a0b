"""Secant approximation of curvature: the change of the support gradient over an inner step."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.adaptation import Adapted
from fastmeta.trajectory.replay import Replay


def secant(adapted: Adapted, replay: Replay) -> list[Tensor | None]:
    """`g_s(theta) - g_s(theta')`, with `theta'` the parameters after the first inner step.

    The second inner step's gradient is `g_s(theta')`; where there is none, the support loss is
    evaluated once more, with the random numbers and buffers of the first.

    Args:
        adapted: the result of an inner loop with at least one step and recorded gradients.
        replay: of the support losses of this inner loop.

    Returns:
        One tensor per parameter; `None` means zero.
    """
    first, *others = adapted.inner_grads
    if others:
        second = others[0]
    else:
        with replay.repeat(0) as loss:
            second = list(torch.autograd.grad(loss(adapted.fast), adapted.fast, allow_unused=True))
    return [_subtract(a, b) for a, b in zip(first, second, strict=True)]


def _subtract(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else -b
    return a - b
