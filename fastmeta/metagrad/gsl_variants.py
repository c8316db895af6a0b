"""All variants of our reconstruction of GSL/AHE behind one switch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

from fastmeta.metagrad.base import MetaGradient
from fastmeta.metagrad.calibrated import CalibratedAHE
from fastmeta.metagrad.central_difference import CentralDifference
from fastmeta.metagrad.gsl import GSL
from fastmeta.metagrad.gsl_curvature import CurvatureGSL
from fastmeta.metagrad.gsl_rule import Variant
from fastmeta.metagrad.recursion import Recursion

_OTHERS: dict[str, Callable[..., MetaGradient]] = {
    "R4": CalibratedAHE,
    "R5": CentralDifference,
    "R6": partial(Recursion, hvp="forward"),
}


def gsl_variant(variant: str = "R1", **options: Any) -> MetaGradient:
    """The meta-gradient of a variant; the word ``"gsl"`` of a configuration.

    R0 to R2p are :class:`GSL` (with ``magnitude="inner-lr"`` :class:`CurvatureGSL`), R4 is
    :class:`CalibratedAHE`, R5 :class:`CentralDifference`, and R6 :class:`Recursion` with
    ``hvp="forward"``. R3 weights tasks and is :class:`fastmeta.aggregation.GslWeights`.

    Args:
        variant: R0 to R6, or R2p.
        **options: of its class.

    Raises:
        ValueError: if the variant is unknown or R3, or an option is out of range.
        TypeError: if the variant has no such option.
    """
    if variant in _OTHERS:
        return _OTHERS[variant](**options)
    known = get_args(Variant)
    if variant not in known:
        raise ValueError(
            f"variant must be one of {', '.join((*known, *_OTHERS))}; got {variant!r}."
        )
    if options.get("magnitude") == "inner-lr":
        del options["magnitude"]
        return CurvatureGSL(variant=variant, **options)
    return GSL(variant=variant, **options)
