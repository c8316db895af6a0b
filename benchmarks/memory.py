"""Peak memory of a run, from the allocations that torch's profiler sees."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object], device: str = "cpu") -> int:
    """Most bytes allocated at a time beyond what there was before ``run``.

    On the CPU every allocation of torch counts, scratch memory too. The garbage collector rests,
    so that memory which only it could free is counted as used.
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
    now = most = 0
    for event in memory:
        now += event.nbytes()
        most = max(most, now)
    return most


def _cuda(run: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before
