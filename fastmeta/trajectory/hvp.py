"""Exact Hessian-vector products of a loss with respect to a list of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils import get_total_norm

from fastmeta.adaptation import LossFn


def hvp_reverse(
    loss: LossFn,
    params: Sequence[Tensor],
    direction: Sequence[Tensor | None],
    others: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    """`H v` by reverse over reverse: the gradient of `<grad, v>`.

    Args:
        loss: a function of the parameters.
        params: leaves that require a gradient.
        direction: `v`, one tensor per parameter; `None` means zero.
        others: further leaves that the loss depends on.

    Returns:
        One tensor per parameter, and the derivative of `<grad, v>` with respect to each of
        `others`; `None` means zero.
    """
    pairs = [(p, v) for p, v in zip(params, direction, strict=True) if v is not None]
    if not pairs:
        return [None] * (len(params) + len(others))
    inputs, vectors = zip(*pairs, strict=True)
    grads = torch.autograd.grad(loss(params), inputs, create_graph=True, allow_unused=True)
    return hvp_of_graph(grads, [*params, *others], vectors)


def hvp_of_graph(
    grads: Sequence[Tensor | None],
    params: Sequence[Tensor],
    direction: Sequence[Tensor | None],
    retain_graph: bool = False,
) -> list[Tensor | None]:
    """`H v` from gradients with a graph, which is freed unless `retain_graph`."""
    # A gradient without a graph does not depend on the parameters: its part of H v is zero.
    pairs = [
        (g, v)
        for g, v in zip(grads, direction, strict=True)
        if g is not None and g.requires_grad and v is not None
    ]
    if not pairs:
        return [None] * len(params)
    outputs, vectors = zip(*pairs, strict=True)
    return list(
        torch.autograd.grad(outputs, params, vectors, retain_graph=retain_graph, allow_unused=True)
    )


def hvp_forward(
    loss: LossFn,
    params: Sequence[Tensor],
    direction: Sequence[Tensor | None],
    others: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    """`H v` by forward over reverse, the tangent of the gradient.

    Arguments and result as in `hvp_reverse`. `torch.no_grad` inside the loss does not
    stop a tangent; `detach` does.

    Raises:
        NotImplementedError: if an operation in the loss or its backward has no forward derivative.
    """
    try:
        with forward_ad.dual_level():
            duals = [
                p if v is None else forward_ad.make_dual(p, v)
                for p, v in zip(params, direction, strict=True)
            ]
            grads = torch.autograd.grad(loss(duals), [*duals, *others], allow_unused=True)
            return [None if g is None else forward_ad.unpack_dual(g).tangent for g in grads]
    except RuntimeError as error:
        # "ZeroTensor" is in the error of mse_loss with reduction="mean", the only known case.
        if isinstance(error, NotImplementedError) or "ZeroTensor" in str(error):
            raise NotImplementedError(
                "forward over reverse needs a forward derivative of every operation in the network "
                f"and the loss, and of their backward passes; torch reports: {error} "
                "Use hvp='reverse', or write that operation in terms of others."
            ) from error
        raise


def hvp_difference(
    loss: LossFn,
    params: Sequence[Tensor],
    direction: Sequence[Tensor | None],
    others: Sequence[Tensor] = (),
    radius: float | None = None,
) -> list[Tensor | None]:
    """`H v` by the central difference of two gradients, without second derivatives.

    Arguments and result as in `hvp_reverse`. The error is of second order in the distance of both
    points from `params`: `radius` times `1 + |params|`, by default the cube root of the dtype's
    precision.
    """
    used = [v for v in direction if v is not None]
    if not used:
        return [None] * (len(params) + len(others))
    norm, size = get_total_norm(used), get_total_norm(list(params))
    if radius is None:
        radius = torch.finfo(params[0].dtype).eps ** (1 / 3)
    # At v = 0 the product is zero: both gradients are equal.
    eps = torch.where(norm > 0, radius * (1 + size) / norm, 1).detach()
    gradients = []
    for signed in (eps, -eps):
        point = [
            p.detach() if v is None else p.detach() + signed * v
            for p, v in zip(params, direction, strict=True)
        ]
        leaves = [p.requires_grad_() for p in point]
        found = torch.autograd.grad(loss(leaves), [*leaves, *others], allow_unused=True)
        gradients.append(found)
    pairs = zip(*gradients, strict=True)
    return [None if a is None or b is None else (a - b) / (2 * eps) for a, b in pairs]


Hvp = Literal["reverse", "forward", "difference"]

PRODUCTS = {"reverse": hvp_reverse, "forward": hvp_forward, "difference": hvp_difference}
"""Hessian-vector products by name."""
