"""Process of a contender: ``python -m benchmarks.rivals.worker CONTENDER CASE GRADIENT THREADS``.

Writes its meta-gradient, if it has one, to GRADIENT and prints ``ready``. Then answers each line of
input with a number: for ``memory`` the peak memory of one meta-gradient in bytes, otherwise its
median seconds over a turn.
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
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._common.memory import peak_bytes
from benchmarks.rivals.cases import load


def main() -> None:
    name, case_file, gradient_file, threads = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    # The fused attention of torch has no second derivative, so all contenders use the plain one.
    with sdpa_kernel(SDPBackend.MATH):
        serve(name, case_file, gradient_file)


def serve(name: str, case_file: str, gradient_file: str) -> None:
    contender = importlib.import_module(f"benchmarks.rivals.contenders.{name}")
    meta_gradient = contender.make(*load(Path(case_file)))
    gradient = meta_gradient()
    if gradient is not None:
        flat = [torch.as_tensor(g).detach().double().flatten() for g in gradient]
        torch.save(torch.cat(flat), gradient_file)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            print(peak_bytes(meta_gradient), flush=True)
            continue
        time.sleep(0.02)  # threads of the previous contender may still be spinning
        meta_gradient()  # warm the caches
        print(turn(meta_gradient), flush=True)


def turn(meta_gradient: Callable[[], object], seconds: float = 0.1) -> float:
    """Median seconds of as many calls as fit into a turn, at least one."""
    times: list[float] = []
    while sum(times) < seconds:
        begin = time.perf_counter()
        meta_gradient()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


if __name__ == "__main__":
    main()
