"""Modules that tell their parameters from their meta-parameters."""

from fastmeta.compat.torchopt._meta_module import MetaGradientModule
from fastmeta.compat.torchopt.diff.implicit import ImplicitMetaGradientModule

__all__ = ["ImplicitMetaGradientModule", "MetaGradientModule"]
