"""Reference implementations of every op in plain PyTorch: its definition, and the test oracle."""

from fastmeta.reference.activation import (
    activation,
    activation_backward,
    activation_backward_tangent,
    activation_second,
    gelu,
    silu,
)
from fastmeta.reference.adamw import adamw_adjoint, adamw_step
from fastmeta.reference.attention import (
    attention,
    attention_backward,
    attention_second,
    attention_tangent,
)
from fastmeta.reference.combine import combine
from fastmeta.reference.conv import conv3x3, conv_input, conv_weight
from fastmeta.reference.cross_entropy import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_second,
    cross_entropy_tangent,
    linear_cross_entropy,
    linear_loss,
    linear_loss_grads,
    linear_loss_second,
    row_losses,
)
from fastmeta.reference.dtypes import accumulation_dtype
from fastmeta.reference.gram import gram
from fastmeta.reference.head_similarity import head_similarity
from fastmeta.reference.mlp import mlp_step
from fastmeta.reference.norm import batch_norm_relu, norm_backward, norm_second, norm_tangent
from fastmeta.reference.pack import pack, pack_, unpack_
from fastmeta.reference.row_norm import (
    layer_norm,
    rms_norm,
    row_norm,
    row_norm_backward,
    row_norm_second,
    row_norm_tangent,
)
from fastmeta.reference.sequence import SequenceLayer, sequence_step
from fastmeta.reference.similarity import mean_similarity, row_similarity
from fastmeta.reference.step import hvp_difference, hvp_perturb, inner_step
from fastmeta.reference.weights import gsl_coefficients, task_weights

__all__ = [
    "SequenceLayer",
    "accumulation_dtype",
    "activation",
    "activation_backward",
    "activation_backward_tangent",
    "activation_second",
    "adamw_adjoint",
    "adamw_step",
    "attention",
    "attention_backward",
    "attention_second",
    "attention_tangent",
    "batch_norm_relu",
    "combine",
    "conv3x3",
    "conv_input",
    "conv_weight",
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_second",
    "cross_entropy_tangent",
    "gelu",
    "gram",
    "gsl_coefficients",
    "head_similarity",
    "hvp_difference",
    "hvp_perturb",
    "inner_step",
    "layer_norm",
    "linear_cross_entropy",
    "linear_loss",
    "linear_loss_grads",
    "linear_loss_second",
    "mean_similarity",
    "mlp_step",
    "norm_backward",
    "norm_second",
    "norm_tangent",
    "pack",
    "pack_",
    "rms_norm",
    "row_losses",
    "row_norm",
    "row_norm_backward",
    "row_norm_second",
    "row_norm_tangent",
    "row_similarity",
    "sequence_step",
    "silu",
    "task_weights",
    "unpack_",
]
