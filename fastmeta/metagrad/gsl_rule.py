"""The GSL update as coefficients of query and support gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.metagrad.base import Shares, mean_over_tasks
from fastmeta.ops.weights import Magnitude
from fastmeta.reference import accumulation_dtype
from fastmeta.schedules import schedule

Variant = Literal["R0", "R1", "R2", "R2p", "R3"]
Scope = Literal["vector", "layer"]


@dataclass
class GslRule:
    """Our reconstruction of GSL/AHE (Tak & Hong 2024), the variants in closed form.

    With ``u_i`` the query and ``v_i`` the mean inner (support) gradient of task ``i`` and
    ``GSL(u, v) = lam_c (1 - cos(u, v)) + lam_2/2 |u - v|^2``, the meta-gradient of the task is

    * ``R0``: ``u_i`` (FOMAML, the control);
    * ``R1``: ``u_i - rho(t) eta scale dGSL/du_i``, in closed form, one evaluation, no inner solve;
    * ``R2``: ``w * u_i`` with one persistent weight a layer, moved once a meta-step against the
      mean ``dGSL/dw`` with rate ``rho(t) eta`` and kept in ``[w_min, w_max]``;
    * ``R2p``: the same with one weight a parameter. Of ``P`` parameters each has about ``1/P`` of
      the cosine loss's slope: ``eta`` is to grow with ``P``;
    * ``R3``: ``u_i``, weighted over tasks by the GSL between ``u_i`` and the mean (no ``v``).

    Attributes:
        variant: see above.
        eta: AHE rate; signed: positive turns the update towards the support gradient. 0 is FOMAML.
        lam_c: weight of the cosine loss.
        lam_2: weight of the L2 loss.
        magnitude: length of the correction (R1), see :func:`fastmeta.ops.gsl_coefficients`;
            ``"clip"`` with scope "vector" is clipping by the global norm.
        ratio: see ``magnitude``.
        schedule: ``rho(t)``, see :func:`fastmeta.schedules.schedule`.
        scope: whether R1 compares whole vectors or layer by layer.
        tau: temperature of R3's softmax.
        w_min: least weight of R2 and R2p.
        w_max: greatest weight of R2 and R2p.
        step: meta-steps taken.
        weights: ``(S,)`` of R2, ``(P,)`` of R2p.
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
    weights: Tensor | None = field(default=None, init=False)

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
        return self.eta != 0 and self.variant in ("R1", "R2", "R2p")

    @property
    def rate(self) -> float:
        """``rho(t) eta`` of the current meta-step."""
        return schedule(self.schedule)(self.step) * self.eta

    def segments(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Where the parts of a row that are compared begin and end: its layers, or all of it."""
        by_layer = self.variant == "R2" or self.scope == "layer"
        return layers if by_layer else (layers[0], layers[-1])

    def coefficients(self, stats: Tensor, sharding: Shares | None = None) -> Tensor:
        """The coefficients of this meta-step's rows; counts the step (and moves R2's weights).

        Args:
            stats: ``(T, S, 3)``: :func:`fastmeta.ops.row_similarity` of query and support rows.
            sharding: of all tasks over ranks, if the rows are those of this rank alone.

        Returns:
            R1: ``(T, 1, 2)`` (scope "vector") or ``(T, S, 2)``; R2: ``(T, S, 1)``.
        """
        if self.variant == "R2":
            result = self._weighted(stats, sharding)
        else:
            whole = self.scope == "vector" and stats.shape[1] > 1
            seen = stats.sum(1, keepdim=True) if whole else stats
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

    def _weighted(self, stats: Tensor, sharding: Shares | None) -> Tensor:
        w = self._current_weights(stats, stats.shape[1])
        dot, uu, vv = stats.unbind(-1)
        scaled = torch.stack([w * dot, w * w * uu, vv], dim=-1)
        p, q = self._derivative(scaled.sum(1, keepdim=True))
        slope = (p * w * uu + q * dot).sum(0)
        w = self._moved(w, mean_over_tasks(slope, len(stats), sharding))
        return w.expand(len(stats), -1).unsqueeze(-1)

    def element_weights(
        self, query: Tensor, inner: Tensor, sharding: Shares | None = None
    ) -> Tensor:
        """R2p's weights ``(P,)`` after this meta-step's move; counts the step.

        Args:
            query: ``(T, P)``, the query rows.
            inner: ``(T, P)``, the support rows.
            sharding: see :meth:`coefficients`.
        """
        like = query.new_empty((), dtype=accumulation_dtype(query.dtype))
        w = self._current_weights(like, query.shape[1])
        slope = torch.zeros_like(w)
        for row, other in zip(query, inner, strict=True):  # temporaries of one row, not of all
            u, v = row.to(like), other.to(like)
            p, q = self._derivative(ops.row_similarity((w * u)[None], v[None]))
            slope += u * (p[0] * w * u + q[0] * v)
        w = self._moved(w, mean_over_tasks(slope, len(query), sharding))
        self.step += 1
        return w

    def _derivative(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        """``p, q``, ``(T, 1)`` each, of ``dGSL/du = p u + q v``."""
        # With unit rate the coefficients are 1 - p and -q.
        unit = self._coefficients(stats, 1.0, "none")[:, 0]
        return 1 - unit[:, :1], -unit[:, 1:]

    def _moved(self, w: Tensor, slope: Tensor) -> Tensor:
        # An overflow spoils this meta-gradient (loss scaling skips it), not the weights for good.
        slope = torch.where(slope.isfinite(), slope, 0)
        self.weights = (w - self.rate * slope).clamp(self.w_min, self.w_max)
        return self.weights

    def _current_weights(self, like: Tensor, count: int) -> Tensor:
        if self.weights is None:
            return like.new_ones(count)
        if len(self.weights) != count:
            raise ValueError(
                f"{self.variant} has {len(self.weights)} gradient weights, but there are {count} "
                f"trainable parameter{'s' if self.variant == 'R2p' else ' tensors'}. Was the state "
                "loaded from another model or variant?"
            )
        return self.weights.to(like)

    def task_weights(self, stats: Tensor) -> Tensor:
        """R3's task weights ``(T,)``, summing to one; counts the step.

        Args:
            stats: ``(T, 2)``: :func:`fastmeta.ops.mean_similarity` of the query rows.
        """
        self.step += 1
        return ops.gsl_task_weights(stats, lam_c=self.lam_c, lam_2=self.lam_2, tau=self.tau)

    def state_dict(self) -> dict[str, Any]:
        """The step count and the persistent weights."""
        return {"step": self.step, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.step = int(state["step"])
        self.weights = state["weights"]
