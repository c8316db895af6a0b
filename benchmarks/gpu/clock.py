"""Time and number of kernel launches on a GPU; wall time on the CPU, to try the tables there."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks._common.timing import Timing, interleaved, wall

Run = Callable[[], object]
_ROUND = 2e-3  # seconds of calls between two events, far above their resolution


def time_all(contenders: Mapping[str, Run], device: str, seconds: float) -> dict[str, Timing]:
    """Seconds per call of each contender, interleaved, ``seconds`` in total."""
    if device == "cpu":
        return interleaved(contenders, seconds, min_rounds=3)
    calls = {run: _calls(run) for run in contenders.values()}
    return interleaved(contenders, seconds, clock=lambda run: _between_events(run, calls[run]))


def _calls(run: Run) -> int:
    run()
    torch.cuda.synchronize()
    once = min(wall(lambda: (run(), torch.cuda.synchronize())) for _ in range(3))
    return min(50, max(1, math.ceil(_ROUND / once)))


def _between_events(run: Run, calls: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def replayed(run: Run) -> Run:
    """The same work as a CUDA graph: the time on the GPU, without Python and launch overhead."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def launched(run: Run) -> Counter[str]:
    """Number of runs of each kernel in one call, including ``Memset`` and ``Memcpy``."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    device = torch.autograd.DeviceType.CUDA
    names = [event.name for event in profiler.events() if event.device_type == device]
    return Counter(re.sub(r"^void |\w+::|\W.*", "", name) for name in names)


def launches(run: Run, device: str) -> int | None:
    """Kernels launched by one call, including copies and fills; ``None`` on the CPU."""
    return None if device == "cpu" else sum(launched(run).values())
