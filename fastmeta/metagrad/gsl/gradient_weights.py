"""Persistent weights of query gradients, learned by the gradient similarity loss (R2, R2p)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_in_range, check_number
from fastmeta.gradients import TaskGradients
from fastmeta.metagrad.base import StepContext
from fastmeta.metagrad.first_order import FirstOrder
from fastmeta.metagrad.gsl.correction import keep_rates
from fastmeta.metagrad.gsl.similarity import SimilarityLoss
from fastmeta.reference import accumulation_dtype
from fastmeta.schedules import schedule as read_schedule


class LayerWeights(FirstOrder):
    """`w * u` with one persistent weight per parameter tensor.

    Once per meta-step `w` takes a gradient step along the mean `-dGSL(w u, v)/dw` over tasks,
    of rate `rho(t) eta`, and is clamped to `[w_min, w_max]`. `u`, `v` and `GSL` as in
    [`GSLCorrection`][fastmeta.metagrad.GSLCorrection]. Variant "layer-weights" (R2) of our
    reconstruction of GSL/AHE (Tak & Hong 2024). Learned rates keep FOMAML's meta-gradient.

    Args:
        eta: AHE rate of the weights; 0 is FOMAML.
        lam_c: weight of the cosine loss.
        lam_2: weight of the L2 loss.
        schedule: `rho(t)`, see [`fastmeta.schedules.schedule`][].
        w_min: minimum weight.
        w_max: maximum weight.

    Raises:
        ValueError: if an option is out of range.
    """

    task_batchable = True
    state_names: ClassVar[tuple[str, ...]] = ("weights",)

    def __init__(
        self,
        eta: float = 1.0,
        lam_c: float = 1.0,
        lam_2: float = 0.0,
        schedule: str = "constant",
        w_min: float = 0.1,
        w_max: float = 10.0,
    ) -> None:
        check_number("eta", eta)
        read_schedule(schedule)  # not kept, so that the object can be pickled
        check_in_range("w_min", w_min, 0, 1, closed=True)
        check_in_range("w_max", w_max, 1, math.inf)
        self.eta = eta
        self.loss = SimilarityLoss(lam_c, lam_2)
        self.schedule = schedule
        self.w_min, self.w_max = w_min, w_max

    @property
    @override
    def needs_support_gradients(self) -> bool:
        return self.eta != 0

    @override
    def combine(
        self, gradients: TaskGradients, extras: Mapping[str, Tensor], context: StepContext
    ) -> TaskGradients:
        u, v, bounds = gradients.outer, gradients.support, context.param_bounds
        if v is None or not self.needs_support_gradients:
            return gradients
        compared = slice(bounds[-1])
        stats = ops.row_similarity(u[:, compared], v[:, compared], bounds)
        w = self._weights(stats, stats.shape[1], context)
        dot, uu, vv = stats.unbind(-1)
        scaled = torch.stack([w * dot, w * w * uu, vv], dim=-1)
        p, q = self.loss.derivative(scaled.sum(1, keepdim=True))
        grad = (p * w * uu + q * dot).sum(0)
        w = self._update(w, grad, gradients.count, context)
        coef = w.expand(len(stats), -1).unsqueeze(-1)
        return gradients.with_coefficients(*keep_rates(coef, bounds, u.shape[1]))

    def _weights(self, like: Tensor, count: int, context: StepContext) -> Tensor:
        weights = context.state.get("weights")
        if weights is None:
            return like.new_ones(count)
        if len(weights) != count:
            raise ValueError(
                f"the state of metagrad.{type(self).__name__} has {len(weights)} gradient weights; "
                f"expected {count}. Load a state that was saved with this model and variant; if "
                "requires_grad of a parameter has changed since the first meta-step, restore it: "
                "the weights cannot follow."
            )
        return weights.to(like)

    def _update(self, w: Tensor, grad: Tensor, count: int | Tensor, context: StepContext) -> Tensor:
        grad = context.mean_over_tasks(grad, count)
        # An overflow affects this meta-step only (loss scaling skips it), the weights persist.
        grad = torch.where(grad.isfinite(), grad, 0)
        rate = read_schedule(self.schedule)(context.step) * self.eta
        w = (w - rate * grad).clamp(self.w_min, self.w_max)
        context.state["weights"] = w
        return w


class ElementWeights(LayerWeights):
    """`w * u` with one persistent weight per scalar parameter.

    As [`LayerWeights`][fastmeta.metagrad.LayerWeights]. With `P` parameters, the derivative of the
    cosine loss in each weight is of order `1/P`, so `eta` should grow with `P`. Variant
    "element-weights" (R2p) of our reconstruction of GSL/AHE (Tak & Hong 2024).
    """

    task_batchable = True

    @override
    def combine(
        self, gradients: TaskGradients, extras: Mapping[str, Tensor], context: StepContext
    ) -> TaskGradients:
        if gradients.support is None or not self.needs_support_gradients:
            return gradients
        compared = slice(context.param_bounds[-1])
        query, support = gradients.outer[:, compared], gradients.support[:, compared]
        like = query.new_empty((), dtype=accumulation_dtype(query.dtype))
        w = self._weights(like, query.shape[1], context)
        grad = torch.zeros_like(w)
        for g_q, g_s in zip(query, support, strict=True):  # temporaries for one task at a time
            u, v = g_q.to(like), g_s.to(like)
            p, q = self.loss.derivative(ops.row_similarity((w * u)[None], v[None]))
            grad += u * (p[0] * w * u + q[0] * v)
        outer = gradients.outer.clone()
        outer[:, compared] *= self._update(w, grad, gradients.count, context)
        return TaskGradients(outer, gradients.support, finite=gradients.finite)
