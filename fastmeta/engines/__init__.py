"""Engines: who runs the tasks of a meta-batch. What is computed is the business of the rooms."""

from fastmeta.engines.base import ENGINES, Engine, EngineName, Loss, Method, Rows, StepResult
from fastmeta.engines.batched import BatchedEngine
from fastmeta.engines.choice import check_name, choose
from fastmeta.engines.chunks import Chunks
from fastmeta.engines.loop import LoopEngine
from fastmeta.engines.mlp import MlpEngine

__all__ = [
    "ENGINES",
    "BatchedEngine",
    "Chunks",
    "Engine",
    "EngineName",
    "LoopEngine",
    "Loss",
    "Method",
    "MlpEngine",
    "Rows",
    "StepResult",
    "check_name",
    "choose",
]
