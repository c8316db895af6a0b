"""A user's `nn.Module` as a function of its parameters and buffers."""

from fastmeta.functional._attention import AttentionCall, watch_attention
from fastmeta.functional._buffers import Buffers
from fastmeta.functional._calls import twice_differentiable
from fastmeta.functional._checkpointing import Checkpoint
from fastmeta.functional._fusion import FusedModule
from fastmeta.functional.co_learner import CoLearner, Head
from fastmeta.functional.module import FunctionalModule, Loss, Penalty
from fastmeta.functional.outputs import model_loss
from fastmeta.functional.predictor import Network, Predictor

__all__ = [
    "AttentionCall",
    "Buffers",
    "Checkpoint",
    "CoLearner",
    "FunctionalModule",
    "FusedModule",
    "Head",
    "Loss",
    "Network",
    "Penalty",
    "Predictor",
    "model_loss",
    "twice_differentiable",
    "watch_attention",
]
