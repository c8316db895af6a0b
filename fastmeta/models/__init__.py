"""Backbones that few-shot papers share."""

from fastmeta.models.conv4 import Conv4, Downsample
from fastmeta.models.mlp import MLP

__all__ = ["MLP", "Conv4", "Downsample"]
