"""The process of a contender: computes a meta-gradient, then measures it as often as asked.

Loads everything, waits for a line, and prints ``ready`` after the first meta-gradient, or why there
is none. Then answers each line of input with a number: for ``memory`` the peak of torch's
allocations in bytes, for ``growth`` how much the first meta-gradient increased the memory of the
process, otherwise the median seconds of a meta-gradient over a turn.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks._common.memory import peak_bytes, peak_growth, release

LONG = 1.0  # seconds; warming the caches does not matter to such calls


def limit_threads(threads: int) -> None:
    """Uses this number of cores; before JAX is imported, which counts them only then."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:threads])
    torch.set_num_threads(threads)


def serve(
    make: Callable[[], Callable[[], Any]],
    gradient_file: Path,
    device: str = "cpu",
    release_memory: bool = False,
) -> None:
    """Computes, writes and times a meta-gradient until the input ends.

    Args:
        make: returns the meta-gradient, a callable.
        gradient_file: where to write the result, unless it is ``None``.
        device: where it is computed.
        release_memory: whether to return freed memory to the system after each turn, so that the
            other contenders can use it.
    """
    try:
        meta_gradient = make()
        if not sys.stdin.readline():
            return
        begin = time.perf_counter()
        gradient, growth = peak_growth(meta_gradient, device)
        warm_up = time.perf_counter() - begin < LONG or not release_memory
        if gradient is not None:
            flat = [torch.as_tensor(g).detach().double().cpu().flatten() for g in gradient]
            torch.save(torch.cat(flat), gradient_file)
            del gradient, flat
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        sys.exit(1)
    # The system is still busy with the memory that the previous contender has returned.
    seconds = 0.5 if release_memory else 0.1
    print("ready", flush=True)
    for line in sys.stdin:
        request = line.strip()
        if request == "memory":
            print(peak_bytes(meta_gradient, device), flush=True)
        elif request == "growth":
            print(growth, flush=True)
        else:
            time.sleep(0.02)  # threads of the previous contender may still be spinning
            if warm_up:
                turn(meta_gradient, device, seconds)
            print(turn(meta_gradient, device, seconds), flush=True)
        if release_memory:
            release()


def turn(meta_gradient: Callable[[], object], device: str, seconds: float) -> float:
    """Median seconds of as many calls as fit into a turn, at least one."""
    times: list[float] = []
    while sum(times) < seconds:
        begin = time.perf_counter()
        meta_gradient()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
