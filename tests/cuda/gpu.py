"""Tests on a GPU: when they are skipped, synchronization and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from fastmeta.backend import kernel_devices

Results = TypeVar("Results", bound=Sequence[Tensor | None])

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or "cuda" not in kernel_devices(),
    reason="needs a CUDA device and the CUDA kernels",
)


def without_synchronization(call: Callable[[], object]) -> None:
    """Raises an error if the host synchronizes with the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def replayed(call: Callable[[], Results]) -> Results:
    """Outputs of the second replay as a CUDA graph, written over NaN."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    for _ in range(2):
        for t in found:
            if t is not None:
                t.fill_(float("nan"))
        graph.replay()
    return found
