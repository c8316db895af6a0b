"""Peak memory of a call: of torch's allocations, or of the whole process."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

Result = TypeVar("Result")


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


def peak_growth(run: Callable[[], Result], device: str = "cpu") -> tuple[Result, int]:
    """Result of a call, and the growth of the peak memory in use during it, in bytes.

    On the CPU it is the resident set of the process (Linux), whatever library allocates. Meanwhile
    glibc returns every large block to the system when it is freed, so that the result does not
    depend on how the heap is fragmented.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return run(), torch.cuda.max_memory_allocated() - before
    release()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the current resident set
    _keep_blocks_below(128 * 1024)
    try:
        before = _status("VmRSS")
        return run(), _status("VmHWM") - before
    finally:
        _keep_blocks_below(32 * 1024**2)  # where glibc's own rule ends


def release() -> None:
    """Returns freed memory to the system, with glibc."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _keep_blocks_below(size: int) -> None:
    """Sets the size from which glibc maps blocks of their own."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(-3, size)  # M_MMAP_THRESHOLD


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])
