"""One contender in a process of its own: ``python worker.py CONTENDER CASE GRADIENT THREADS``.

Writes its meta-gradient, if it has one, to GRADIENT and says ``ready``; then answers every line of
its input with a number: for ``memory``, the most bytes that torch allocates in one meta-gradient,
else the seconds of one, the median of a turn.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from cases import load
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.append(str(Path(__file__).parents[1]))
from memory import peak_bytes


def main() -> None:
    name, case_file, gradient_file, threads = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    # torch's fused attention has no second derivative; all contenders take the other one.
    with sdpa_kernel(SDPBackend.MATH):
        serve(name, case_file, gradient_file)


def serve(name: str, case_file: str, gradient_file: str) -> None:
    meta_gradient = importlib.import_module(f"contenders.{name}").make(*load(Path(case_file)))
    gradient = meta_gradient()
    if gradient is not None:
        flat = [torch.as_tensor(g).detach().double().flatten() for g in gradient]
        torch.save(torch.cat(flat), gradient_file)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            print(peak_bytes(meta_gradient), flush=True)
            continue
        time.sleep(0.02)  # the threads of the one before are still spinning
        meta_gradient()  # the caches are the other's
        print(turn(meta_gradient), flush=True)


def turn(meta_gradient: Callable[[], object], seconds: float = 0.1) -> float:
    """Seconds of a call: the median of as many as fit into a turn, at least one."""
    times: list[float] = []
    while sum(times) < seconds:
        begin = time.perf_counter()
        meta_gradient()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


if __name__ == "__main__":
    main()
