"""Interleaved timing: all contenders in the same run, median over many rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contender: median over the rounds, and lower and upper quartile."""

    median: float
    low: float
    high: float


def wall(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    seconds: float = 4.0,
    min_rounds: int = 9,
    clock: Callable[[Callable[[], object]], float] = wall,
) -> dict[str, Timing]:
    """Times all contenders in turn, so that changes of clock speed or load affect all alike."""
    for run in contenders.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(next(iter(times.values()))) < min_rounds:
        for name, run in contenders.items():
            times[name].append(clock(run))
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high)


def reader(buffer: torch.Tensor) -> Callable[[], object]:
    """A call that reads a buffer once, at the full bandwidth of the cache or memory it is in."""
    return buffer.view(-1).sum


def report(title: str, timings: Mapping[str, Timing], against: str, notes: str = "") -> str:
    """Prints and returns a table of milliseconds, quartiles, and ratio to ``against``."""
    base = timings[against].median
    lines = [f"\n{title}", f"{'':<34}{'ms':>10}{'quartiles':>22}{'x ' + against:>22}"]
    for name, timing in timings.items():
        spread = f"{timing.low * 1e3:.3f} .. {timing.high * 1e3:.3f}"
        ratio = f"{timing.median / base:.2f}"
        lines.append(f"{name:<34}{timing.median * 1e3:>10.3f}{spread:>22}{ratio:>22}")
    text = "\n".join([*lines, notes])
    print(text)
    return text
