"""The GSL update as coefficients of query and support gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.ops.weights import Magnitude
from fastmeta.schedules import schedule

Variant = Literal["R0", "R1", "R2", "R3"]
Scope = Literal["vector", "layer"]


@dataclass
class GslRule:
    """Our reconstruction of GSL/AHE (Tak & Hong 2024), all variants behind one switch.

    With ``u_i`` the query and ``v_i`` the mean inner (support) gradient of task ``i`` and
    ``GSL(u, v) = lam_c (1 - cos(u, v)) + lam_2/2 |u - v|^2``, the meta-gradient of the task is

    * ``R0``: ``u_i`` (FOMAML, the control);
    * ``R1``: ``u_i - rho(t) eta scale dGSL/du_i``, in closed form, one evaluation, no inner solve;
    * ``R2``: ``w * u_i`` with one persistent weight a layer, moved once a meta-step against the
      mean ``dGSL/dw`` with rate ``rho(t) eta`` and kept in ``[w_min, w_max]``;
    * ``R3``: ``u_i``, weighted over tasks by the GSL between ``u_i`` and the mean (no ``v``).

    Attributes:
        variant: see above.
        eta: AHE rate; signed: positive turns the update towards the support gradient. 0 is FOMAML.
        lam_c: weight of the cosine loss.
        lam_2: weight of the L2 loss.
        magnitude: length of the correction (R1), see :func:`fastmeta.ops.gsl_coefficients`.
        ratio: see ``magnitude``.
        schedule: ``rho(t)``, see :func:`fastmeta.schedules.schedule`.
        scope: whether R1 compares whole vectors or layer by layer.
        tau: temperature of R3's softmax.
        w_min: least weight of R2.
        w_max: greatest weight of R2.
        step: meta-steps taken.
        layer_weights: R2's weights, ``(S,)``.
    """

    variant: Variant = "R1"
    eta: float = 1.0
    lam_c: float = 1.0
    lam_2: float = 0.0
    magnitude: Magnitude = "norm-match"
    ratio: float = 1.0
    schedule: str = "constant"
    scope: Scope = "vector"
    tau: float = 1.0
    w_min: float = 0.1
    w_max: float = 10.0
    step: int = field(default=0, init=False)
    layer_weights: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for name, choices in (("variant", Variant), ("scope", Scope), ("magnitude", Magnitude)):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(choices))}; got {value!r}."
                )
        if not self.tau > 0:
            raise ValueError(f"tau must be positive, got {self.tau}.")
        if not 0 <= self.w_min <= 1 <= self.w_max:
            raise ValueError(
                f"expected 0 <= w_min <= 1 <= w_max, got w_min={self.w_min} and w_max={self.w_max}."
            )
        schedule(self.schedule)  # raises if it is none; not kept, so that the rule can be pickled

    @property
    def needs_inner(self) -> bool:
        """Whether support gradients are used at all."""
        return self.eta != 0 and self.variant in ("R1", "R2")

    @property
    def rate(self) -> float:
        """``rho(t) eta`` of the current meta-step."""
        return schedule(self.schedule)(self.step) * self.eta

    def coefficients(self, stats: Tensor) -> Tensor:
        """The coefficients of this meta-step's rows; counts the step (and moves R2's weights).

        Args:
            stats: ``(T, S, 3)``: :func:`fastmeta.ops.row_similarity` of query and support rows.

        Returns:
            R1: ``(T, 1, 2)`` (scope "vector") or ``(T, S, 2)``; R2: ``(T, S, 1)``.
        """
        if self.variant == "R2":
            result = self._weighted(stats)
        else:
            seen = stats.sum(1, keepdim=True) if self.scope == "vector" else stats
            result = self._coefficients(seen, self.rate, self.magnitude)
        self.step += 1
        return result

    def _coefficients(self, stats: Tensor, rate: float, magnitude: Magnitude) -> Tensor:
        return ops.gsl_coefficients(
            stats,
            stats.new_ones(len(stats)),
            stats.new_full((1,), rate),
            lam_c=self.lam_c,
            lam_2=self.lam_2,
            magnitude=magnitude,
            ratio=self.ratio,
        )

    def _weighted(self, stats: Tensor) -> Tensor:
        w = self._current_weights(stats)
        dot, uu, vv = stats.unbind(-1)
        scaled = torch.stack([w * dot, w * w * uu, vv], dim=-1).sum(1, keepdim=True)
        # With unit rate the coefficients are 1 - p and -q of dGSL/d(wu) = p wu + q v.
        unit = self._coefficients(scaled, 1.0, "none")[:, 0]
        p, q = 1 - unit[:, :1], -unit[:, 1:]
        slope = (p * w * uu + q * dot).mean(0)
        # An overflow spoils this meta-gradient (loss scaling skips it), not the weights for good.
        slope = torch.where(slope.isfinite(), slope, 0)
        self.layer_weights = (w - self.rate * slope).clamp(self.w_min, self.w_max)
        return self.layer_weights.expand(len(stats), -1).unsqueeze(-1)

    def _current_weights(self, stats: Tensor) -> Tensor:
        segments = stats.shape[1]
        if self.layer_weights is None:
            return stats.new_ones(segments)
        if len(self.layer_weights) != segments:
            raise ValueError(
                f"R2 has {len(self.layer_weights)} layer weights, but there are {segments} "
                "trainable parameter tensors. Was the state loaded from another model?"
            )
        return self.layer_weights.to(stats)

    def task_weights(self, stats: Tensor) -> Tensor:
        """R3's task weights ``(T,)``, summing to one; counts the step.

        Args:
            stats: ``(T, 2)``: :func:`fastmeta.ops.mean_similarity` of the query rows.
        """
        self.step += 1
        return ops.gsl_task_weights(stats, lam_c=self.lam_c, lam_2=self.lam_2, tau=self.tau)

    def state_dict(self) -> dict[str, Any]:
        """The step count and R2's weights."""
        return {"step": self.step, "layer_weights": self.layer_weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.step = int(state["step"])
        self.layer_weights = state["layer_weights"]
