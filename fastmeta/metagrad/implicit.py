"""The implicit meta-gradient of iMAML."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta.adaptation import Adaptation, LayerPattern, ProximalSGD, run_inner_loop
from fastmeta.gradients import FlatLayout
from fastmeta.metagrad._hvp import hvp_of_graph, twice_differentiable
from fastmeta.metagrad._replay import untraced
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient, TaskLosses

_LAM = 2.0


class Implicit(MetaGradient):
    """``(I + H / lam)^-1 g_q``, by conjugate gradient at the adapted parameters.

    ``H`` is the Hessian of the support loss there, ``g_q`` the query gradient. Rajeswaran et al.
    2019, "Meta-Learning with Implicit Gradients", theorem 1, algorithm 2: the exact meta-gradient
    where the inner loop ends at a minimum of ``S(theta) + lam/2 |theta - theta_0|^2``, however it
    got there: memory does not grow with the inner steps.

    All Hessian-vector products are of one evaluation of the support loss, so of the same dropout
    masks; it leaves buffers and random number generators as they were. Learned rates stay as they
    are: a minimum does not depend on the way there. Where some parameters alone are adapted, the
    minimum is over those of the last inner step, and the others' gradient that through the minimum.

    Args:
        cg_steps: steps of the solver, one Hessian-vector product each; 5 in the authors' example.
        lam: see above; by default that of the adaptation if it is
            :class:`~fastmeta.adaptation.ProximalSGD` (or one for some layers), else 2.
        damping: is added to ``lam`` in the matrix, which makes it positive in more directions of
            negative curvature, and its inverse smaller along all; 10 in the authors' code, not in
            the paper.

    Raises:
        ValueError: if ``cg_steps`` is below 1, ``lam`` not positive or ``damping`` negative.
    """

    # Not task_batchable: the solver takes inner products over all parameters of a task.
    second_order = True

    def __init__(self, cg_steps: int = 5, lam: float | None = None, damping: float = 0.0) -> None:
        if cg_steps < 1:
            raise ValueError(f"cg_steps must be at least 1, got {cg_steps}.")
        if lam is not None:
            _check(lam)
        if not damping >= 0:
            raise ValueError(f"damping must not be negative, got {damping}.")
        self.cg_steps = cg_steps
        self.lam = lam
        self.damping = damping

    @override
    @twice_differentiable
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        """Adapts to one task and differentiates.

        Raises:
            ValueError: if the adaptation's ``lam`` is taken and is 0.
        """
        lam = self.lam
        if lam is None:
            inner = adaptation.inner if isinstance(adaptation, LayerPattern) else adaptation
            lam = inner.lam if isinstance(inner, ProximalSGD) else _LAM
            _check(lam)
        pull = lam + self.damping
        adapted = run_inner_loop(
            adaptation, lambda p: losses.support(p)[0], params, record=context.record_support
        )
        fast, layout = adapted.fast, FlatLayout.of(params)
        loss, output = losses.query(fast)
        grads = torch.autograd.grad(loss, fast, allow_unused=True, materialize_grads=True)
        with untraced(losses, params[0].device):
            support, _ = losses.support(fast)
        slopes = torch.autograd.grad(support, fast, create_graph=True, allow_unused=True)

        def product(v: Tensor) -> Tensor:
            curved = hvp_of_graph(slopes, fast, layout.views(v), retain_graph=True)
            return torch.cat(
                [
                    p.flatten() if c is None else (p + c / pull).flatten()
                    for p, c in zip(layout.views(v), curved, strict=True)
                ]
            )

        g = ops.pack(grads)[0]
        moving = adaptation.adapts(max(adaptation.steps - 1, 0), params)
        if all(moving):
            found = conjugate_gradient(product, g, self.cg_steps)
        else:
            free = torch.cat(
                [torch.full_like(p, m).flatten() for p, m in zip(params, moving, strict=True)]
            )
            x = conjugate_gradient(lambda v: free * product(v), free * g, self.cg_steps)
            found = torch.where(free > 0, x, g - product(x))
        return TaskGradient.of(layout.views(found), adapted, loss, output, context)


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """``A^-1 b`` for a symmetric ``A``, by ``steps`` steps from 0; never waits for the device.

    Where ``A`` is not positive along a direction, it keeps what it had before, or ``b`` if that was
    the first direction (Nocedal & Wright 2006, "Numerical Optimization", algorithm 7.1).

    Args:
        product: ``v`` to ``A v``.
        b: ``(P,)``.
        steps: products to take; ``P`` are exact but for rounding.
    """
    x, rest, way = torch.zeros_like(b), b, b
    size = b.dot(b)
    for _ in range(steps):
        image = product(way)
        curvature = way.dot(image)
        # Also at the solution, where the way is 0 or too small to be squared.
        ends = (curvature <= 0) | (size == 0)
        length = torch.where(ends, 0, size / curvature)
        x, rest = x + length * way, rest - length * image
        before, size = size, rest.dot(rest)
        way = torch.where(ends, 0, rest + size / before * way)
    return torch.where(x.any(), x, b)


def _check(lam: float) -> None:
    if not lam > 0:
        raise ValueError(f"lam must be positive for the implicit meta-gradient, got {lam}.")
