"""fastmeta with ``keep_freed_memory()``."""

from __future__ import annotations

from typing import Any

from benchmarks.rivals.cases import Case
from benchmarks.rivals.contenders import fastmeta_engine
from fastmeta import keep_freed_memory


def make(case: Case, module: Any, batch: Any) -> Any:
    if not keep_freed_memory():
        raise ImportError("keep_freed_memory() needs Linux with glibc")
    return fastmeta_engine.make(case, module, batch)
