"""fastmeta with ``keep_freed_memory()``."""

from __future__ import annotations

from typing import Any

from cases import Case

from contenders import fastmeta_engine
from fastmeta import keep_freed_memory


def make(case: Case, module: Any, batch: Any) -> Any:
    if not keep_freed_memory():
        raise ImportError("freed memory can be kept on Linux with glibc only")
    return fastmeta_engine.make(case, module, batch)
