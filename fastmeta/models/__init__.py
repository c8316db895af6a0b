"""Standard backbones of few-shot learning."""

from fastmeta.models.conv4 import Conv4, Downsample
from fastmeta.models.conv_co_learner import conv_co_learner
from fastmeta.models.gcn import GCN
from fastmeta.models.mlp import MLP
from fastmeta.models.per_step_norm import PerStepBatchNorm2d
from fastmeta.models.registry import BACKBONES, BackboneSpec, NetworkOptions
from fastmeta.models.resnet12 import ResNet12
from fastmeta.models.siren import SIREN
from fastmeta.models.sparse import (
    KLPenalty,
    SparseConv2d,
    SparseLinear,
    kl_divergence,
    log_alpha,
    sparsify,
    sparsity,
)
from fastmeta.models.text import LabelTextEncoder, TextEncoder
from fastmeta.models.warp import warp_conv, warp_linear

__all__ = [
    "BACKBONES",
    "GCN",
    "MLP",
    "SIREN",
    "BackboneSpec",
    "Conv4",
    "Downsample",
    "KLPenalty",
    "LabelTextEncoder",
    "NetworkOptions",
    "PerStepBatchNorm2d",
    "ResNet12",
    "SparseConv2d",
    "SparseLinear",
    "TextEncoder",
    "conv_co_learner",
    "kl_divergence",
    "log_alpha",
    "sparsify",
    "sparsity",
    "warp_conv",
    "warp_linear",
]
