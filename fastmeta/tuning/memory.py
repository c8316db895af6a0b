"""Peak memory of a call."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The maximum number of bytes that torch allocates during `run`, beyond those before it.

    The garbage collector is disabled meanwhile: memory that only it could free counts as used.
    """
    gc.collect()
    gc.disable()
    try:
        return _peak_on_gpu(run, device) if device.type == "cuda" else _peak_on_cpu(run)
    finally:
        gc.enable()


def _peak_on_gpu(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(run: Callable[[], object]) -> int:
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    # The sum of all allocations and deallocations, in the order of time.
    found = profiler.profiler
    assert found is not None
    events = [e for e in found.kineto_results.events() if e.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Discards what the profiler's C++ code writes to stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
