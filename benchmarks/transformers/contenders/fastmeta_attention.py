"""``fastmeta.ops.attention``."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.transformers.cases import Case
from benchmarks.transformers.contenders import attention_calls
from fastmeta import ops


def make(case: Case, module: Any, batch: Any) -> Any:
    attention = partial(ops.attention, causal=case.causal)
    return attention_calls.double_backward(case, batch, attention)
