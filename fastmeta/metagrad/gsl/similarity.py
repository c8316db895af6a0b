"""The gradient similarity loss of a query and a support gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastmeta import ops
from fastmeta._checks import check_nonnegative
from fastmeta.ops.weights import Magnitude


@dataclass(frozen=True)
class SimilarityLoss:
    """`GSL(u, v) = lam_c (1 - cos(u, v)) + lam_2/2 |u - v|^2`.

    `u` is a task's query gradient, `v` its mean support gradient. Tak & Hong 2024, our
    reconstruction.

    Attributes:
        lam_c: weight of the cosine loss.
        lam_2: weight of the L2 loss.

    Raises:
        ValueError: if a weight is negative or not finite.
    """

    lam_c: float = 1.0
    lam_2: float = 0.0

    def __post_init__(self) -> None:
        check_nonnegative("lam_c", self.lam_c)
        check_nonnegative("lam_2", self.lam_2)

    def descend(
        self,
        stats: Tensor,
        rate: float,
        magnitude: Magnitude = "none",
        ratio: float = 1.0,
        noise: float | None = None,
    ) -> Tensor:
        """The coefficients `(T, S, 2)` of `u` and `v` in `u - rate scale dGSL/du`.

        Args:
            stats: `(T, S, 3)`, [`fastmeta.ops.row_similarity`][] of `u` and `v`.
            rate: the step size.
            magnitude: norm of the step, see [`fastmeta.ops.gsl_coefficients`][].
            ratio: see `magnitude`.
            noise: relative norm up to which a segment counts as zero, see
                [`fastmeta.ops.gsl_coefficients`][].
        """
        return ops.gsl_coefficients(
            stats,
            stats.new_ones(len(stats)),
            stats.new_full((1,), rate),
            lam_c=self.lam_c,
            lam_2=self.lam_2,
            magnitude=magnitude,
            ratio=ratio,
            noise=noise,
        )

    def derivative(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        """`p, q`, `(T, 1)` each, of `dGSL/du = p u + q v`, from `(T, 1, 3)` stats."""
        step = self.descend(stats, 1.0)[:, 0]  # 1 - p, -q
        return 1 - step[:, :1], -step[:, 1:]
