"""The implicit meta-gradient of iMAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_integer, check_nonnegative, check_positive
from fastmeta.adaptation import Adaptation, LayerPattern, ProximalSGD, run_inner_loop
from fastmeta.functional import twice_differentiable
from fastmeta.gradients import FlatLayout
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.task_losses import TaskLosses
from fastmeta.trajectory.hvp import hvp_of_graph
from fastmeta.trajectory.replay import preserve_state
from fastmeta.trajectory.solvers import Product, conjugate_gradient

_DEFAULT_LAM = 2.0


class Implicit(MetaGradient):
    """`(I + H / lam)^-1 g_q`, by conjugate gradients at the adapted parameters.

    `H` is the Hessian of the support loss there, `g_q` the query gradient. Rajeswaran et al.
    2019, "Meta-Learning with Implicit Gradients", theorem 1, algorithm 2: the exact meta-gradient
    where the inner loop ends at a minimum of `S(theta) + lam/2 |theta - theta_0|^2`. The inner
    steps taken do not matter, and memory does not grow with their number.

    All Hessian-vector products use one evaluation of the support loss, and so the same dropout
    masks; it leaves buffers and random number generators unchanged. Learned rates are not trained:
    a minimum does not depend on the path to it. If only some parameters are adapted, the minimum is
    over those of the last inner step; the others get their gradient through it.

    Args:
        cg_steps: number of solver steps, one Hessian-vector product each; 5 in the authors'
            example.
        lam: strength of the proximal term; by default that of the adaptation if it is
            [`ProximalSGD`][fastmeta.adaptation.ProximalSGD] (also within a
            [`LayerPattern`][fastmeta.adaptation.LayerPattern]), else 2.
        damping: added to `lam` in the matrix, which makes it positive along more directions of
            negative curvature and shrinks its inverse; 10 in the authors' code, not in the paper.

    Raises:
        ValueError: if `cg_steps` is below 1, `lam` not positive or `damping` negative.
    """

    # Not task_batchable: the solver takes inner products over all parameters of a task.
    second_order = True

    def __init__(self, cg_steps: int = 5, lam: float | None = None, damping: float = 0.0) -> None:
        check_integer("cg_steps", cg_steps, 1)
        if lam is not None:
            check_positive("lam", lam)
        check_nonnegative("damping", damping)
        self.cg_steps = cg_steps
        self.lam = lam
        self.damping = damping

    @override
    @twice_differentiable()
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        """Adapts to one task and computes its meta-gradient.

        Raises:
            ValueError: if the adaptation's `lam` is used and is 0.
        """
        lam = self.lam
        if lam is None:
            inner = adaptation.inner if isinstance(adaptation, LayerPattern) else adaptation
            lam = inner.lam if isinstance(inner, ProximalSGD) else _DEFAULT_LAM
            check_positive("the adaptation's lam", lam)
        damped = lam + self.damping
        adapted = run_inner_loop(
            adaptation, lambda p: losses.support(p)[0], params, record=context.record_support
        )
        fast, layout = adapted.fast, FlatLayout.of(params)
        loss, output = losses.query(fast)
        grads = torch.autograd.grad(loss, fast, allow_unused=True, materialize_grads=True)
        with preserve_state(losses.buffers, params[0].device):
            support, _ = losses.support(fast)
        support_grads = torch.autograd.grad(support, fast, create_graph=True, allow_unused=True)

        def product(v: Tensor) -> Tensor:  # (I + H / damped) v
            hvp = hvp_of_graph(support_grads, fast, layout.views(v), retain_graph=True)
            return torch.cat(
                [
                    p.flatten() if h is None else (p + h / damped).flatten()
                    for p, h in zip(layout.views(v), hvp, strict=True)
                ]
            )

        g = ops.pack(grads)[0]
        adapts = adaptation.adapts(max(adaptation.steps - 1, 0), params)
        if all(adapts):
            solution = solve(product, g, self.cg_steps)
        else:
            # x solves the system restricted to the adapted parameters; the others get g - A x.
            mask = torch.cat(
                [torch.full_like(p, a).flatten() for p, a in zip(params, adapts, strict=True)]
            )
            x = solve(lambda v: mask * product(v), mask * g, self.cg_steps)
            solution = torch.where(mask > 0, x, g - product(x))
        return TaskGradient.of(layout.views(solution), adapted, loss, output, context)


def solve(product: Product, b: Tensor, steps: int) -> Tensor:
    """`A^-1 b` by conjugate gradients, or `b` where they end at the first direction.

    Arguments as of [`fastmeta.trajectory.solvers.conjugate_gradient`][].
    """
    x = conjugate_gradient(product, b, steps).x
    return torch.where(x.any(), x, b)
