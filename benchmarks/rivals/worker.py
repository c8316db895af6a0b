"""One contender in a process of its own: ``python worker.py CONTENDER CASE GRADIENT THREADS``.

Writes its meta-gradient to GRADIENT and says ``ready``; then answers every line of its input with
the seconds of one meta-gradient: the median of a turn.
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


def main() -> None:
    name, case_file, gradient_file, threads = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    meta_gradient = importlib.import_module(f"contenders.{name}").make(*load(Path(case_file)))
    gradient = [torch.as_tensor(g).detach().double().flatten() for g in meta_gradient()]
    torch.save(torch.cat(gradient), gradient_file)
    print("ready", flush=True)
    for _ in sys.stdin:
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
