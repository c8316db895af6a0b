"""Meta-gradients from the end of a run alone: implicit differentiation and SAMA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_choice, check_integer, check_nonnegative, check_positive
from fastmeta.gradients import FlatLayout
from fastmeta.trajectory.hvp import hvp_difference, hvp_of_graph
from fastmeta.trajectory.methods import AtEnd, EndDerivatives, RunEnd
from fastmeta.trajectory.solvers import conjugate_gradient, neumann

Solver = Literal["cg", "neumann"]


class Implicit(AtEnd):
    """The derivative of a minimum of the inner loss, at the last parameters `theta`.

    It is `- (d^2 L / d meta d theta) (H + damping I)^-1 v`, added to the outer loss's own
    derivative, with `v` the gradient of the outer loss at `theta` and `H` the Hessian of `L`, the
    mean inner loss of the last batches. That is the derivative of a run that has converged to a
    minimum of `L`, where neither the initial parameters nor the inner optimizer matter. Pedregosa
    2016, "Hyperparameter optimization with approximate gradient" (arXiv 1602.02355); Lorraine et
    al. 2020 (arXiv 1911.02590). The memory does not grow with the run.

    All products use one evaluation of the inner losses, and so the same dropout masks. Weight decay
    of the inner optimizer is not part of `L`: put it into the inner loss, or, if it is constant and
    added to the gradient, set `damping` to it.

    Args:
        solver: `"cg"`, conjugate gradients; or `"neumann"`, a series of which `steps` terms are the
            derivative of as many steps of gradient descent at a minimum, with the rate `scale`.
        steps: number of Hessian-vector products.
        damping: added to the Hessian. Where the Hessian is not positive, conjugate gradients stop,
            see [`fastmeta.trajectory.Info`][].
        batches: number of last batches whose mean inner loss is `L`; their graphs are kept at once.
        scale: of the series, below 2 divided by the largest eigenvalue of the Hessian; needed for
            `"neumann"` only.

    Raises:
        ValueError: if an argument is out of range, or `scale` is given without `"neumann"` or
            missing with it.
    """

    def __init__(
        self,
        solver: Solver = "cg",
        steps: int = 10,
        damping: float = 0.0,
        batches: int = 1,
        scale: float | None = None,
    ) -> None:
        check_choice("solver", solver, ("cg", "neumann"))
        check_integer("steps", steps, 1)
        check_nonnegative("damping", damping)
        check_integer("batches", batches, 1)
        if (scale is not None) != (solver == "neumann"):
            raise ValueError(
                f"expected scale with solver='neumann' only; got solver={solver!r}, scale={scale}."
            )
        if scale is not None:
            check_positive("scale", scale)
        self.solver = solver
        self.steps = steps
        self.damping = damping
        self.batches = batches
        self.scale = scale

    @property
    @override
    def dropped(self) -> str:
        return (
            "The path to the last parameters, which are taken for a minimum of the inner loss: "
            "initial parameters and settings of the inner optimizer have no influence there."
        )

    @override
    def derivatives(self, end: RunEnd, v: Sequence[Tensor]) -> EndDerivatives:
        rates = [torch.zeros_like(r) for r in end.optimizer.rates]
        if not end.meta:
            return EndDerivatives([], rates, None)
        # Parameters that are never moved are constants of the minimum.
        adapts = end.optimizer.adapts(end.step - 1, end.params)
        params = [p for p, moved in zip(end.params, adapts, strict=True) if moved]
        count = min(self.batches, end.steps)
        losses = [end.loss(back)(end.params) for back in range(count, 0, -1)]
        mean = torch.stack(losses).mean()
        grads = torch.autograd.grad(mean, params, create_graph=True, allow_unused=True)
        layout = FlatLayout.of(params)

        def product(flat: Tensor) -> Tensor:
            found = hvp_of_graph(grads, params, layout.views(flat), retain_graph=True)
            hvp = [
                torch.zeros_like(p) if h is None else h for p, h in zip(params, found, strict=True)
            ]
            return _flat(hvp) + self.damping * flat

        b = _flat([g for g, moved in zip(v, adapts, strict=True) if moved])
        if self.scale is None:
            x, residual = conjugate_gradient(product, b, self.steps)
        else:
            x, residual = neumann(product, b, self.steps, self.scale)
        return EndDerivatives(hvp_of_graph(grads, end.meta, layout.views(-x)), rates, residual)


class Sama(AtEnd):
    """Implicit differentiation with the identity for the Hessian: SAMA.

    Choe et al. 2023, "Making Scalable Meta Learning Practical" (arXiv 2310.05674). With `u(g)` the
    parameters after another step of the inner optimizer from the last parameters `theta` with the
    gradient `g`, and `w = (du/dg)^T v`, a multiple of `v` for gradient descent and elementwise for
    Adam: the derivative of `<g, w>` with respect to the meta-parameters, by the central difference
    of the gradients with respect to the meta-parameters at `theta + e w` and `theta - e w`. That
    takes three gradients of the last batch's inner loss and no second derivative. Settings of the
    inner optimizer get the derivative of that step, which repeats the number of the last one: a
    schedule has not ended.

    Args:
        radius: distance `|e w|` of both points from `theta`, as a multiple of `1 + |theta|`; by
            default the cube root of the dtype's precision. The authors' code has 1 without the
            factor.

    Raises:
        ValueError: if `radius` is not positive.
    """

    def __init__(self, radius: float | None = None) -> None:
        if radius is not None:
            check_positive("radius", radius)
        self.radius = radius

    @property
    @override
    def dropped(self) -> str:
        return (
            "The path to the last parameters, and the inner loss's Hessian, replaced by the "
            "identity; a central difference replaces the second derivative."
        )

    @override
    def derivatives(self, end: RunEnd, v: Sequence[Tensor]) -> EndDerivatives:
        params, loss, step = end.params, end.loss(), end.step - 1
        adapts = end.optimizer.adapts(step, params)
        wanted = [p for p, moved in zip(params, adapts, strict=True) if moved]
        found = iter(torch.autograd.grad(loss(params), wanted, allow_unused=True))
        grads = [next(found) if moved else None for moved in adapts]
        pullback = end.optimizer.pullback(step, params, grads, end.state)
        back = pullback(v, [torch.zeros_like(s) for s in end.state])
        products = hvp_difference(loss, params, back.grads, end.meta, self.radius)
        return EndDerivatives(products[len(params) :], back.rates, None)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])
