"""Selection of the engine that runs a meta-batch."""

from __future__ import annotations

from collections.abc import Sequence

from fastmeta._checks import check_choice
from fastmeta.engines.base import ENGINES, Engine, EngineName, StepSpec
from fastmeta.engines.batched import BatchedEngine
from fastmeta.engines.compiled import Compilation, CompiledEngine
from fastmeta.engines.loop import LoopEngine
from fastmeta.engines.mlp import MlpEngine
from fastmeta.engines.sequence import SequenceEngine
from fastmeta.tasks import MetaBatch


class EngineSelector:
    """The engines of a learner; selects the one that runs a meta-batch.

    `"auto"` selects the MLP engine where it is suitable, else the sequence engine, else the loop.
    It never selects the batched engine, which on the CPU is slower than the loop for large layers
    and batches (`benchmarks/NOTES.md`), and has not been measured on a GPU; nor, on a GPU, the
    sequence engine, for the latter reason; nor the compiled one, whose first meta-step takes
    seconds to minutes.

    Args:
        name: one of [`ENGINES`][fastmeta.engines.ENGINES].
        spec: the module and the components of a meta-step.

    Raises:
        ValueError: if the name is unknown.
    """

    def __init__(self, name: EngineName, spec: StepSpec) -> None:
        check_choice("engine", name, ENGINES)
        self.name = name
        self._loop = LoopEngine(spec)
        kinds: dict[str, list[type[Engine]]] = {
            "auto": [MlpEngine, SequenceEngine],
            "batched": [BatchedEngine],
            "compiled": [CompiledEngine],
            "mlp": [MlpEngine],
            "sequence": [SequenceEngine],
        }
        self._special = [kind(spec) for kind in kinds.get(name, [])]

    @property
    def compilations(self) -> Sequence[Compilation]:
        """What the compiled engine has compiled so far; nothing for other engines."""
        engines = [e for e in self._special if isinstance(e, CompiledEngine)]
        return tuple(engines[0].compilations) if engines else ()

    def select(self, batch: MetaBatch) -> Engine:
        """The engine for a meta-batch.

        Raises:
            ValueError: if the engine asked for cannot run it.
        """
        reason: str | None = None
        for engine in self._special:
            if self.name == "auto" and not _is_measured(engine):
                continue
            reason = engine.unsuitable(batch)
            if reason is None:
                return engine
        if self.name in ("auto", "loop"):
            return self._loop
        raise ValueError(
            f"engine {self.name!r} cannot run this: {reason}. Use engine='auto' or 'loop'."
        )


def _is_measured(engine: Engine) -> bool:
    """Whether the engine has been measured on the device of the parameters."""
    on_gpu = bool(engine.spec.model.params) and engine.spec.model.params[0].is_cuda
    return not (on_gpu and isinstance(engine, SequenceEngine))
