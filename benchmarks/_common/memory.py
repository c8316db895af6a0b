"""Peak memory of a call, from the allocations recorded by torch's profiler."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object], device: str = "cpu") -> int:
    """Maximum number of bytes allocated during ``run``, beyond what was allocated before it.

    On the CPU every allocation made by torch counts, including scratch memory. The garbage
    collector is disabled, so memory that only it could free counts as used.
    """
    run()
    gc.collect()
    gc.disable()
    try:
        return _cuda(run) if device == "cuda" else _cpu(run)
    finally:
        gc.enable()


def _cpu(run: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    memory = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    current = peak = 0
    for event in memory:
        current += event.nbytes()
        peak = max(peak, current)
    return peak


def _cuda(run: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before
