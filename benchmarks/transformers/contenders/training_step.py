"""Forward and backward pass of the query sets, with torch's fused attention."""

from __future__ import annotations

from typing import Any

from benchmarks.transformers.cases import Case
from benchmarks.transformers.contenders import attention_calls


def make(case: Case, module: Any, batch: Any) -> Any:
    if case.network == "attention":
        return attention_calls.training_step(case, batch)
    _, _, query_x, query_y = batch

    def step() -> None:
        module.zero_grad()
        for x, y in zip(query_x, query_y, strict=True):
            (case.loss(module(x), y) / case.tasks).backward()

    return step
