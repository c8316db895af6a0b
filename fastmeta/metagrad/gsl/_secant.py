"""How the support gradient changes over the first inner step: curvature without a Hessian."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.adaptation import Adapted
from fastmeta.metagrad._replay import Replay


def secant(adapted: Adapted, replay: Replay) -> list[Tensor | None]:
    """``g_s(theta) - g_s(theta')``, with ``theta'`` the parameters after the first inner step.

    The second inner step's gradient is ``g_s(theta')``; where there is none, the support loss is
    evaluated once more, with the random numbers and buffers of the first.

    Args:
        adapted: of an inner loop with at least one step, its gradients recorded.
        replay: that saw its support losses.

    Returns:
        One tensor a parameter; ``None`` means zero.
    """
    first, *others = adapted.inner_grads
    if others:
        second = others[0]
    else:
        with replay.last() as loss:
            second = list(torch.autograd.grad(loss(adapted.fast), adapted.fast, allow_unused=True))
    return [_minus(a, b) for a, b in zip(first, second, strict=True)]


def _minus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else -b
    return a - b
