"""FOMAML corrected by the gradient similarity loss (R1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_choice, check_nonnegative, check_number
from fastmeta.gradients import TaskGradients
from fastmeta.metagrad.base import StepContext
from fastmeta.metagrad.first_order import FirstOrder
from fastmeta.metagrad.gsl.similarity import SimilarityLoss
from fastmeta.ops.weights import Magnitude, noise_level
from fastmeta.schedules import schedule as read_schedule

Scope = Literal["vector", "layer"]


class GSLCorrection(FirstOrder):
    """FOMAML's meta-gradient corrected towards (or away from) the task's support gradient.

    `u - rho(t) eta scale dGSL/du` in closed form, with `u` the query gradient, `v` the mean
    support gradient and `GSL(u, v) = lam_c (1 - cos(u, v)) + lam_2/2 |u - v|^2`. Variant
    "correction" (R1) of our reconstruction of GSL/AHE (Tak & Hong 2024), the gradient similarity
    loss: first-order calculations only, no inner solve. Costs an additional `(T, P)` buffer
    and two passes over it. Learned rates, which support gradients do not cover, keep FOMAML's
    meta-gradient. [`fastmeta.metagrad.gsl_variant`][] has the other variants.

    Args:
        eta: AHE rate; positive turns the update towards the support gradient, negative away from
            it. 0 is FOMAML.
        lam_c: weight of the cosine loss.
        lam_2: weight of the L2 loss.
        magnitude: norm of the correction, see [`fastmeta.ops.gsl_coefficients`][]; `"clip"`
            with scope "vector" is clipping by the global norm.
        ratio: see `magnitude`.
        schedule: `rho(t)`, see [`fastmeta.schedules.schedule`][].
        scope: `"vector"` compares whole gradients, `"layer"` each parameter tensor by itself. One
            whose query or support gradient is zero up to rounding has no cosine loss, such as the
            bias of a convolution before BatchNorm: the threshold is 4096 eps of the dtype times
            the norm of the whole gradient, at most 1/128 of that norm.

    Raises:
        ValueError: if an option is out of range.
    """

    task_batchable = True

    def __init__(
        self,
        eta: float = 1.0,
        lam_c: float = 1.0,
        lam_2: float = 0.0,
        magnitude: Magnitude = "norm-match",
        ratio: float = 1.0,
        schedule: str = "constant",
        scope: Scope = "vector",
    ) -> None:
        check_number("eta", eta)
        check_choice("magnitude", magnitude, get_args(Magnitude))
        check_nonnegative("ratio", ratio)
        read_schedule(schedule)  # not kept, so that the object can be pickled
        check_choice("scope", scope, get_args(Scope))
        self.eta = eta
        self.loss = SimilarityLoss(lam_c, lam_2)
        self.magnitude: Magnitude = magnitude
        self.ratio = ratio
        self.schedule = schedule
        self.scope: Scope = scope

    @property
    @override
    def needs_support_gradients(self) -> bool:
        return self.eta != 0

    @override
    def combine(
        self, gradients: TaskGradients, extras: Mapping[str, Tensor], context: StepContext
    ) -> TaskGradients:
        u, v = gradients.outer, gradients.support
        if v is None or not self.needs_support_gradients:
            return gradients
        layers = context.param_bounds
        compared = slice(layers[-1])
        bounds = layers if self.scope == "layer" else (0, layers[-1])
        stats = ops.row_similarity(u[:, compared], v[:, compared], bounds)
        coef = self.coefficients(stats, extras, context)
        return gradients.with_coefficients(*keep_rates(coef, bounds, u.shape[1]))

    def coefficients(
        self, stats: Tensor, extras: Mapping[str, Tensor], context: StepContext
    ) -> Tensor:
        """The coefficients `(T, S, 2)` of query and support gradients in the meta-gradients.

        Args:
            stats: `(T, S, 3)`, [`fastmeta.ops.row_similarity`][] of the two.
            extras: see [`MetaGradient.combine`][fastmeta.metagrad.MetaGradient.combine].
            context: the meta-step.
        """
        rate = read_schedule(self.schedule)(context.step) * self.eta
        noise = noise_level(context.precision or stats.dtype)
        return self.loss.descend(stats, rate, self.magnitude, self.ratio, noise)


def keep_rates(coef: Tensor, bounds: tuple[int, ...], size: int) -> tuple[Tensor, tuple[int, ...]]:
    """Appends a segment that leaves the learned rates, if there are any, unchanged."""
    if bounds[-1] == size:
        return coef, bounds
    unchanged = torch.zeros_like(coef[:, :1])
    unchanged[..., 0] = 1
    return torch.cat([coef, unchanged], 1), (*bounds, size)
