"""Gradients for inner steps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def gradients(
    loss: Tensor,
    parameters: Iterable[Tensor],
    *,
    create_graph: bool,
    retain_graph: bool | None = None,
    allow_unused: bool,
    allow_nograd: bool,
) -> list[Tensor | None]:
    """`torch.autograd.grad` that can skip frozen and unused parameters.

    Args:
        loss: a scalar.
        parameters: the parameters.
        create_graph: whether the gradients can be differentiated.
        retain_graph: whether to keep the graph of the loss; `create_graph` by default.
        allow_unused: whether the loss may be independent of some parameters.
        allow_nograd: whether some parameters may have `requires_grad=False`.

    Returns:
        A gradient for each parameter; `None` for those that are unused or frozen.

    Raises:
        RuntimeError: if a parameter is unused or frozen and that is not allowed.
    """
    params = list(parameters)
    wanted = [p for p in params if p.requires_grad] if allow_nograd else params
    try:
        found = torch.autograd.grad(
            loss,
            wanted,
            retain_graph=retain_graph,
            create_graph=create_graph,
            allow_unused=allow_unused,
        )
    except RuntimeError as error:
        raise RuntimeError(
            f"{error}\nPass allow_nograd=True if parameters have requires_grad=False, "
            "allow_unused=True if the loss does not depend on all of them."
        ) from error
    rest = iter(found)
    return [None if allow_nograd and not p.requires_grad else next(rest) for p in params]
