"""The Hessian term of MAML fitted, now and then, by gradients that are there anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.adaptation import Adaptation
from fastmeta.gradients import GradientBuffer, TaskGradients
from fastmeta.metagrad._replay import Replay, untraced
from fastmeta.metagrad._secant import secant
from fastmeta.metagrad.base import Episode, MetaGradient, TaskGradient
from fastmeta.metagrad.first_order import first_order
from fastmeta.metagrad.recursion import Recursion
from fastmeta.reference import accumulation_dtype


class CalibratedAHE(MetaGradient):
    """``g_q + c1 G_in + c2 g_q + c3 (g_s(theta) - g_s(theta'))``, ``c`` fitted to the exact term.

    Variant R4 of our reconstruction of GSL/AHE (Tak & Hong 2024), and our own: no sign or length of
    the correction is guessed. ``g_q`` is FOMAML's meta-gradient, ``G_in`` the mean inner gradient,
    ``theta'`` the parameters after the first inner step. Every ``every`` meta-steps the exact
    meta-gradient of a few tasks is computed besides (:class:`Recursion`), and ``c`` fitted to their
    Hessian terms by least squares; from the next meta-step on it is in use. All other steps are
    first-order: FOMAML's cost, one more support gradient a task if ``secant`` with one inner step,
    and two passes over the parameters. The first meta-step is FOMAML's. Learned rates keep
    FOMAML's meta-gradient.

    Args:
        every: meta-steps from one calibration to the next.
        tasks: how many of a meta-batch's first tasks are calibrated on.
        decay: of the moving average over calibrations; 0 uses the last one alone.
        secant: whether ``c3`` is fitted, else it is 0.

    Attributes:
        step: meta-steps taken.
        coefficients: ``c``, ``(2,)`` or ``(3,)``; ``None`` before the first calibration.

    Raises:
        ValueError: if an option is out of range.
    """

    second_order = True  # in calibrations

    def __init__(
        self, every: int = 20, tasks: int = 4, decay: float = 0.5, secant: bool = True
    ) -> None:
        if every < 1 or tasks < 1:
            raise ValueError(f"every and tasks must be at least 1, got {every} and {tasks}.")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}.")
        self.every = every
        self.tasks = tasks
        self.decay = decay
        self.secant = secant
        self.step = 0
        self.coefficients: Tensor | None = None
        self._exact = Recursion()
        self._grams: list[Tensor] = []

    @property
    def _calibrates(self) -> bool:
        return self.step % self.every == 0

    @property
    def _own(self) -> int:
        """How many of this rank's first tasks are among the meta-batch's."""
        return self.tasks if self.sharding is None else self.tasks - self.sharding.own.start

    def task(
        self, episode: Episode, params: Sequence[Tensor], adaptation: Adaptation, record: bool
    ) -> TaskGradient:
        """See :meth:`MetaGradient.task`.

        Raises:
            ValueError: if there is no inner step.
        """
        device, count = params[0].device, len(params)
        exact = None
        if self._calibrates and len(self._grams) < self._own:
            with untraced(episode, device):
                exact = self._exact.task(episode, params, adaptation, False).query[:count]
        replay = Replay(episode, device)
        found, adapted = first_order(replay.loss, episode.query, params, adaptation, record=True)
        assert found.inner is not None
        rows = GradientBuffer(params)
        for grads in (found.inner, found.query[:count]):
            rows.append(grads)
        if self.secant:
            rows.append(secant(adapted, replay))
        basis = rows.filled
        if exact is not None:
            rows.append(exact).sub_(basis[1])
            self._grams.append(ops.gram(rows.filled)[0])
        query = rows.layout.views(ops.combine(basis, self._weights(basis)))
        inner = found.inner if record else None
        return replace(found, query=[*query, *found.query[count:]], inner=inner)

    def _weights(self, basis: Tensor) -> Tensor:
        """Of ``G_in``, ``g_q`` and perhaps the secant in the meta-gradient."""
        weights = basis.new_zeros(len(basis), dtype=accumulation_dtype(basis.dtype))
        weights[1] = 1
        return weights if self.coefficients is None else weights + self.coefficients.to(weights)

    def rows(self, query: GradientBuffer, inner: GradientBuffer | None) -> TaskGradients:
        """See :meth:`MetaGradient.rows`."""
        if self._calibrates:
            self._calibrate(self._gram(query.filled))
            self._grams = []
        self.step += 1
        return super().rows(query, inner)

    def _gram(self, like: Tensor) -> Tensor:
        """Inner products of ``G_in``, ``g_q``, perhaps the secant, and the target, of all tasks."""
        size = 3 + self.secant
        total = like.new_zeros(size, size, dtype=accumulation_dtype(like.dtype))
        for gram in self._grams:
            total += gram
        return total if self.sharding is None else self.sharding.sum(total)

    def _calibrate(self, gram: Tensor) -> None:
        if not gram.isfinite().all():
            return  # an overflow spoils this meta-gradient, not the coefficients for good
        fitted = least_squares(gram)
        if self.coefficients is not None:
            old = self.coefficients.to(fitted)
            fitted = self.decay * old + (1 - self.decay) * fitted
        self.coefficients = fitted

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`MetaGradient.state_dict`."""
        return {"step": self.step, "coefficients": self.coefficients}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`MetaGradient.load_state_dict`.

        Raises:
            ValueError: if the state is of another setting of ``secant``.
        """
        coefficients = state["coefficients"]
        if coefficients is not None and len(coefficients) != 2 + self.secant:
            raise ValueError(
                f"expected {2 + self.secant} coefficients with secant={self.secant}, got "
                f"{len(coefficients)}. Use the setting of secant that the state was saved with."
            )
        self.step = int(state["step"])
        self.coefficients = coefficients


def least_squares(gram: Tensor) -> Tensor:
    """The combination of vectors that is nearest to another; the shortest of several.

    Args:
        gram: inner products of the vectors and, last, of the target.

    Returns:
        One coefficient a vector, in float64.
    """
    wide = gram.double()
    size = wide.diagonal()[:-1].sqrt()
    size = torch.where(size > 0, size, 1)
    cosines, target = wide[:-1, :-1] / (size[:, None] * size), wide[:-1, -1] / size
    # Directions that rounding in the products has made up are left out.
    rtol = 100 * torch.finfo(gram.dtype).eps
    fitted: Tensor = torch.linalg.pinv(cosines, rtol=rtol, hermitian=True) @ target / size
    return fitted
