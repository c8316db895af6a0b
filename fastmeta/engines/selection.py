"""Which engine runs a meta-batch."""

from __future__ import annotations

from fastmeta.engines.base import ENGINES, Engine, EngineName, Method, UnsuitableError
from fastmeta.engines.batched import BatchedEngine
from fastmeta.engines.loop import LoopEngine
from fastmeta.engines.mlp import MlpEngine
from fastmeta.tasks import TaskBatch


def check_name(name: str) -> None:
    """Refuses a name that is no engine's.

    Raises:
        ValueError: if it is not one of :data:`ENGINES`.
    """
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}.")


def choose(name: EngineName, method: Method, batch: TaskBatch) -> Engine:
    """The engine asked for; for ``"auto"`` the MLP kernel where it can run, else the loop.

    ``"auto"`` never takes the batched engine: on the CPU its gain turns into a loss with the size
    of layers and batches (``benchmarks/NOTES.md``), and on a GPU it has not been measured.

    Looked up anew for every meta-batch, because a module can change between two of them.

    Raises:
        ValueError: if the engine asked for cannot run this.
    """
    if name == "loop":
        return LoopEngine(method, batch)
    kind: type[Engine] = BatchedEngine if name == "batched" else MlpEngine
    try:
        return kind(method, batch)
    except UnsuitableError as reason:
        if name != "auto":
            raise ValueError(
                f"engine {name!r} cannot run this: {reason}. Use engine='auto' or 'loop'."
            ) from None
    return LoopEngine(method, batch)
