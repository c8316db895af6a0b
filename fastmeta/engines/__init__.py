"""Engines, which run the tasks of a meta-batch. Results do not depend on the engine."""

from fastmeta.engines.base import (
    ENGINES,
    Engine,
    EngineName,
    Outputs,
    StepBuffers,
    StepResult,
    StepSpec,
)
from fastmeta.engines.batched import BatchedEngine
from fastmeta.engines.compiled import Compilation, CompiledEngine
from fastmeta.engines.loop import LoopEngine
from fastmeta.engines.mlp import MlpEngine
from fastmeta.engines.selection import EngineSelector
from fastmeta.engines.sequence import SequenceEngine
from fastmeta.functional import Loss

__all__ = [
    "ENGINES",
    "BatchedEngine",
    "Compilation",
    "CompiledEngine",
    "Engine",
    "EngineName",
    "EngineSelector",
    "LoopEngine",
    "Loss",
    "MlpEngine",
    "Outputs",
    "SequenceEngine",
    "StepBuffers",
    "StepResult",
    "StepSpec",
]
