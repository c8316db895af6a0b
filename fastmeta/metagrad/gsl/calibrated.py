"""FOMAML plus a linear combination, periodically fitted to the exact Hessian term (R4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_bool, check_in_range, check_integer
from fastmeta.adaptation import Adaptation
from fastmeta.gradients import GradientBuffer, TaskGradients
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.first_order import first_order
from fastmeta.metagrad.gsl._secant import secant
from fastmeta.metagrad.recursion import Recursion
from fastmeta.metagrad.task_losses import TaskLosses
from fastmeta.reference import accumulation_dtype
from fastmeta.trajectory.replay import Replay, preserve_state


class CalibratedGSL(MetaGradient):
    """`g_q + c1 G_in + c2 g_q + c3 (g_s(theta) - g_s(theta'))`, `c` fitted to the exact term.

    Variant "calibrated" (R4) of our reconstruction of GSL/AHE (Tak & Hong 2024), an addition of
    ours: neither sign nor norm of the correction is assumed. `g_q` is FOMAML's meta-gradient,
    `G_in` the mean support gradient, `theta'` the parameters after the first inner step. Every
    `every` meta-steps the exact meta-gradient of a few tasks is also computed
    ([`Recursion`][fastmeta.metagrad.Recursion]), and `c` is fitted to their Hessian terms by least
    squares; it is used from the next meta-step on.
    All other steps are first-order: the cost of FOMAML, two passes over the parameters and, if
    `secant` with one inner step, one more support gradient per task. The first meta-step is that
    of FOMAML. Learned rates keep FOMAML's meta-gradient.

    Args:
        every: number of meta-steps between calibrations.
        tasks: number of tasks, the first of the meta-batch, that a calibration uses.
        decay: of the moving average over calibrations; 0 uses the last one only.
        secant: whether `c3` is fitted; otherwise it is 0.

    Raises:
        ValueError: if an option is out of range.
    """

    second_order = True  # in calibration steps
    state_names: ClassVar[tuple[str, ...]] = ("coefficients",)

    def __init__(
        self, every: int = 20, tasks: int = 4, decay: float = 0.5, secant: bool = True
    ) -> None:
        check_integer("every", every, 1)
        check_integer("tasks", tasks, 1)
        check_in_range("decay", decay, 0, 1)
        check_bool("secant", secant)
        self.every = every
        self.tasks = tasks
        self.decay = decay
        self.secant = secant
        self._exact = Recursion()

    def _is_calibration(self, context: StepContext) -> bool:
        return context.step % self.every == 0

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        device, count = params[0].device, len(params)
        exact = None
        if self._is_calibration(context) and context.task < self.tasks:
            with preserve_state(losses.buffers, device):
                unrecorded = replace(context, record_support=False)
                exact = self._exact.task(losses, params, adaptation, unrecorded).outer[:count]
        replay = Replay(lambda p: losses.support(p)[0], losses.buffers, device)
        recorded = replace(context, record_support=True)
        result, adapted = first_order(replay.loss, losses.query, params, adaptation, recorded)
        assert result.support is not None
        basis = GradientBuffer(params)
        for grads in (result.support, result.outer[:count]):
            basis.append(grads)
        if self.secant:
            basis.append(secant(adapted, replay))
        vectors = basis.filled
        coefficients = context.state.get("coefficients")
        flat = ops.combine(vectors, _weights(vectors, coefficients))
        extras: dict[str, Tensor] = {}
        if self._is_calibration(context):
            if exact is None:
                size = len(vectors) + 1
                dtype = accumulation_dtype(vectors.dtype)
                extras["gram"] = vectors.new_zeros(size, size, dtype=dtype)
            else:
                basis.append(exact).sub_(vectors[1])
                extras["gram"] = ops.gram(basis.filled)[0]
        return replace(
            result,
            outer=[*basis.layout.views(flat), *result.outer[count:]],
            support=result.support if context.record_support else None,
            extras=extras,
        )

    @override
    def combine(
        self, gradients: TaskGradients, extras: Mapping[str, Tensor], context: StepContext
    ) -> TaskGradients:
        if self._is_calibration(context):
            # Inner products of G_in, g_q, the secant (if used) and the target, over all tasks.
            total = torch.zeros_like(extras["gram"][0])
            for gram in extras["gram"]:
                total += gram
            self._calibrate(
                total if context.sharding is None else context.sharding.sum(total), context
            )
        return gradients

    def _calibrate(self, gram: Tensor, context: StepContext) -> None:
        if not gram.isfinite().all():
            return  # an overflow affects this meta-step only, the coefficients persist
        fitted = least_squares(gram)
        old = context.state.get("coefficients")
        if old is not None:
            fitted = self.decay * old.to(fitted) + (1 - self.decay) * fitted
        context.state["coefficients"] = fitted

    @override
    def check_state(self, state: Mapping[str, Any]) -> None:
        super().check_state(state)
        coefficients = state.get("coefficients")
        if coefficients is not None and len(coefficients) != 2 + self.secant:
            raise ValueError(
                f"expected {2 + self.secant} coefficients with secant={self.secant}, got "
                f"{len(coefficients)}. Use the setting of secant that the state was saved with."
            )


def _weights(vectors: Tensor, coefficients: Tensor | None) -> Tensor:
    """The coefficients of `G_in`, `g_q` and the secant (if used) in the meta-gradient."""
    weights = vectors.new_zeros(len(vectors), dtype=accumulation_dtype(vectors.dtype))
    weights[1] = 1
    return weights if coefficients is None else weights + coefficients.to(weights)


def least_squares(gram: Tensor) -> Tensor:
    """The linear combination of vectors that is nearest to a target, by its coefficients.

    If there are several, those of minimum norm for vectors of norm 1.

    Args:
        gram: inner products of the `n` vectors and, last, the target, `(n + 1, n + 1)`.

    Returns:
        One coefficient per vector, `(n,)`, in float64.
    """
    wide = gram.double()
    norms = wide.diagonal()[:-1].sqrt()
    norms = torch.where(norms > 0, norms, 1)
    cosines, target = wide[:-1, :-1] / (norms[:, None] * norms), wide[:-1, -1] / norms
    # Directions that only exist by rounding of the inner products are dropped.
    rtol = 100 * torch.finfo(gram.dtype).eps
    fitted: Tensor = torch.linalg.pinv(cosines, rtol=rtol, hermitian=True) @ target / norms
    return fitted
