"""Backbones that few-shot papers share."""

from fastmeta.models.conv4 import Conv4, Downsample
from fastmeta.models.conv_co_learner import conv_co_learner
from fastmeta.models.mlp import MLP
from fastmeta.models.per_step_norm import PerStepBatchNorm2d
from fastmeta.models.resnet12 import ResNet12

__all__ = ["MLP", "Conv4", "Downsample", "PerStepBatchNorm2d", "ResNet12", "conv_co_learner"]
