"""A user's `nn.Module` as a function of its parameters and buffers."""

from fastmeta.functional._attention import AttentionCall, watch_attention
from fastmeta.functional._calls import twice_differentiable
from fastmeta.functional._fusion import FusedModule
from fastmeta.functional.co_learner import CoLearner, Head
from fastmeta.functional.module import Buffers, FunctionalModule

__all__ = [
    "AttentionCall",
    "Buffers",
    "CoLearner",
    "FunctionalModule",
    "FusedModule",
    "Head",
    "twice_differentiable",
    "watch_attention",
]
