"""Differentiation of solutions."""

from fastmeta.compat.torchopt.diff import implicit

__all__ = ["implicit"]
