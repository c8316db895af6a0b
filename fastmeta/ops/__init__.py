"""Compiled ops on packed task gradients; [`fastmeta.reference`][] has the PyTorch references."""

from fastmeta.ops.activation import gelu, silu
from fastmeta.ops.adamw import adamw_adjoint, adamw_step
from fastmeta.ops.attention import attention
from fastmeta.ops.combine import combine, combine_
from fastmeta.ops.conv import conv3x3
from fastmeta.ops.cross_entropy import cross_entropy
from fastmeta.ops.gram import gram, pair_cosines, pair_distances
from fastmeta.ops.head_similarity import HeadSimilarity, head_similarity
from fastmeta.ops.hvp import hvp_difference, hvp_perturb, hvp_radius
from fastmeta.ops.linear_cross_entropy import linear_cross_entropy
from fastmeta.ops.mlp import MlpStep, mlp_step
from fastmeta.ops.norm import batch_norm_relu
from fastmeta.ops.pack import pack, pack_, unpack_
from fastmeta.ops.row_norm import layer_norm, rms_norm
from fastmeta.ops.sequence import SequenceStep, Workspace, sequence_step
from fastmeta.ops.similarity import mean_similarity, row_similarity
from fastmeta.ops.step import inner_step, inner_step_
from fastmeta.ops.weights import agreement_weights, gsl_coefficients, gsl_task_weights
from fastmeta.reference.sequence import SequenceLayer

__all__ = [
    "HeadSimilarity",
    "MlpStep",
    "SequenceLayer",
    "SequenceStep",
    "Workspace",
    "adamw_adjoint",
    "adamw_step",
    "agreement_weights",
    "attention",
    "batch_norm_relu",
    "combine",
    "combine_",
    "conv3x3",
    "cross_entropy",
    "gelu",
    "gram",
    "gsl_coefficients",
    "gsl_task_weights",
    "head_similarity",
    "hvp_difference",
    "hvp_perturb",
    "hvp_radius",
    "inner_step",
    "inner_step_",
    "layer_norm",
    "linear_cross_entropy",
    "mean_similarity",
    "mlp_step",
    "pack",
    "pack_",
    "pair_cosines",
    "pair_distances",
    "rms_norm",
    "row_similarity",
    "sequence_step",
    "silu",
    "unpack_",
]
