"""Engines: who runs the tasks of a meta-batch. What is computed is the business of the rooms."""

from fastmeta.engines._chunks import Chunks
from fastmeta.engines.base import ENGINES, Engine, EngineName, Loss, Method, Rows, StepResult
from fastmeta.engines.batched import BatchedEngine
from fastmeta.engines.loop import LoopEngine
from fastmeta.engines.mlp import MlpEngine
from fastmeta.engines.selection import check_name, choose

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
