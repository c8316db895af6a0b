"""Reference implementations of every op in plain PyTorch: its definition, and the test oracle."""

from fastmeta.reference.attention import (
    attention,
    attention_backward,
    attention_second,
    attention_tangent,
)
from fastmeta.reference.combine import combine
from fastmeta.reference.conv import conv3x3, conv_input, conv_weight
from fastmeta.reference.dtypes import accumulation_dtype
from fastmeta.reference.gram import gram
from fastmeta.reference.head_similarity import head_similarity
from fastmeta.reference.mlp import mlp_step
from fastmeta.reference.norm import batch_norm_relu, norm_backward, norm_second, norm_tangent
from fastmeta.reference.pack import pack, pack_, unpack_
from fastmeta.reference.similarity import mean_similarity, row_similarity
from fastmeta.reference.step import hvp_difference, hvp_perturb, inner_step
from fastmeta.reference.weights import gsl_coefficients, task_weights

__all__ = [
    "accumulation_dtype",
    "attention",
    "attention_backward",
    "attention_second",
    "attention_tangent",
    "batch_norm_relu",
    "combine",
    "conv3x3",
    "conv_input",
    "conv_weight",
    "gram",
    "gsl_coefficients",
    "head_similarity",
    "hvp_difference",
    "hvp_perturb",
    "inner_step",
    "mean_similarity",
    "mlp_step",
    "norm_backward",
    "norm_second",
    "norm_tangent",
    "pack",
    "pack_",
    "row_similarity",
    "task_weights",
    "unpack_",
]
