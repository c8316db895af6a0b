"""Our reconstruction of GSL/AHE (gradient similarity loss, Tak & Hong 2024), one class per rule."""

from fastmeta.metagrad.gsl.calibrated import CalibratedGSL
from fastmeta.metagrad.gsl.correction import GSLCorrection
from fastmeta.metagrad.gsl.curvature import CurvatureGSL
from fastmeta.metagrad.gsl.gradient_weights import ElementWeights, LayerWeights
from fastmeta.metagrad.gsl.similarity import SimilarityLoss
from fastmeta.metagrad.gsl.support_similarity import GSL
from fastmeta.metagrad.gsl.variants import VARIANT_ALIASES, VARIANTS, gsl_variant

__all__ = [
    "GSL",
    "VARIANTS",
    "VARIANT_ALIASES",
    "CalibratedGSL",
    "CurvatureGSL",
    "ElementWeights",
    "GSLCorrection",
    "LayerWeights",
    "SimilarityLoss",
    "gsl_variant",
]
