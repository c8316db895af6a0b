"""The variants of our reconstruction of GSL/AHE, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastmeta._options import check_options, forwards_options
from fastmeta.metagrad.base import MetaGradient
from fastmeta.metagrad.central_difference import CentralDifference
from fastmeta.metagrad.first_order import FirstOrder
from fastmeta.metagrad.gsl.calibrated import CalibratedGSL
from fastmeta.metagrad.gsl.correction import GSLCorrection
from fastmeta.metagrad.gsl.curvature import CurvatureGSL
from fastmeta.metagrad.gsl.gradient_weights import ElementWeights, LayerWeights
from fastmeta.metagrad.gsl.support_similarity import GSL
from fastmeta.metagrad.recursion import Hvp, Recursion
from fastmeta.ops.weights import Magnitude


@forwards_options(lambda given: GSLCorrection)
def _correction(
    magnitude: Magnitude | Literal["inner-lr"] = "norm-match", **options: Any
) -> MetaGradient:
    """[`GSLCorrection`][fastmeta.metagrad.GSLCorrection] with one more magnitude rule.

    Args:
        magnitude: norm of the correction: as it is, that of the query gradient, `ratio` times
            that, at most `ratio` times that, or `"inner-lr"`, see
            [`CurvatureGSL`][fastmeta.metagrad.CurvatureGSL].
        **options: of [`GSLCorrection`][fastmeta.metagrad.GSLCorrection].
    """
    if magnitude == "inner-lr":
        return CurvatureGSL(**options)
    return GSLCorrection(magnitude=magnitude, **options)


@forwards_options(lambda given: Recursion)
def _hvp_forward(hvp: Hvp = "forward", **options: Any) -> MetaGradient:
    """[`Recursion`][fastmeta.metagrad.Recursion] by forward over reverse.

    Args:
        hvp: see [`Recursion`][fastmeta.metagrad.Recursion].
        **options: of [`Recursion`][fastmeta.metagrad.Recursion].
    """
    return Recursion(hvp=hvp, **options)


DEFAULT_VARIANT = "similarity"
"""The variant that `GSL` without one means."""

VARIANTS: dict[str, Callable[..., MetaGradient]] = {
    "off": FirstOrder,
    "correction": _correction,
    "similarity": GSL,
    "layer-weights": LayerWeights,
    "element-weights": ElementWeights,
    "calibrated": CalibratedGSL,
    "central-difference": CentralDifference,
    "hvp-forward": _hvp_forward,
}
"""The variants that are meta-gradients; "task-weights" is an aggregation."""

VARIANT_ALIASES: dict[str, str] = {
    "R0": "off",
    "R1": "correction",
    "R2": "layer-weights",
    "R2p": "element-weights",
    "R3": "task-weights",
    "R4": "calibrated",
    "R5": "central-difference",
    "R6": "hvp-forward",
}
"""Short names of the variants."""


@forwards_options(
    lambda given: VARIANTS.get(_full_name(given.get("variant", DEFAULT_VARIANT)), GSL)
)
def gsl_variant(variant: str = DEFAULT_VARIANT, **options: Any) -> MetaGradient:
    """The meta-gradient of a variant of GSL; `"gsl"` in a configuration.

    Args:
        variant: `"similarity"` ([`GSL`][fastmeta.metagrad.GSL]), `"off"` (R0,
            [`FirstOrder`][fastmeta.metagrad.FirstOrder]), `"correction"` (R1,
            [`GSLCorrection`][fastmeta.metagrad.GSLCorrection]; with `magnitude="inner-lr"`
            [`CurvatureGSL`][fastmeta.metagrad.CurvatureGSL]), `"layer-weights"` (R2,
            [`LayerWeights`][fastmeta.metagrad.LayerWeights]), `"element-weights"` (R2p,
            [`ElementWeights`][fastmeta.metagrad.ElementWeights]), `"calibrated"` (R4,
            [`CalibratedGSL`][fastmeta.metagrad.CalibratedGSL]), `"central-difference"` (R5,
            [`CentralDifference`][fastmeta.metagrad.CentralDifference]) or `"hvp-forward"` (R6,
            [`Recursion`][fastmeta.metagrad.Recursion]), or a short name. `"task-weights"` (R3) is
            [`fastmeta.aggregation.GslWeights`][].
        **options: arguments of its class.

    Raises:
        ValueError: if the variant is unknown or R3, or an option is out of range.
        TypeError: if the variant has no such option.
    """
    name = _full_name(variant)
    if name == "task-weights":
        raise ValueError(
            "variant 'task-weights' (R3) weights tasks: use aggregation='gsl' with "
            "metagrad='first-order'."
        )
    if name not in VARIANTS:
        raise ValueError(
            f"variant must be one of {', '.join(VARIANTS)}, or {', '.join(VARIANT_ALIASES)}; got "
            f"{variant!r}."
        )
    # An option of another variant, such as the former default, is an error that names its own.
    check_options(f"variant {name!r}", VARIANTS[name], options)
    return VARIANTS[name](**options)


def _full_name(variant: str) -> str:
    return VARIANT_ALIASES.get(variant, variant)
