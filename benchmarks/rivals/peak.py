"""Peak memory of the exact meta-gradient against the number of inner steps.

    python -m benchmarks.rivals.peak --out benchmarks/results/rivals-memory.txt --rivals PYTHON

Maximum memory allocated by torch during one meta-gradient, Omniglot Conv4-64, one task. The last
column is the growth without the fast weights of all steps, which every exact method has to store.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.rivals.cases import Case, build, save
from benchmarks.rivals.compare import start

CASE = Case("Omniglot Conv4-64, 5-way 1-shot, 1 task", "strided", 1)
CONTENDERS = ("plain_autograd", "learn2learn_maml", "fastmeta_engine", "fastmeta_recursion")
STEPS = (1, 5, 50)


def peak(name: str, case: Case, rivals: str) -> float:
    """Peak memory in bytes; NaN if the contender cannot run."""
    with tempfile.TemporaryDirectory() as folder:
        case_file = Path(folder) / "case.pt"
        save(case, case_file)
        worker, _ = start(name, case_file, rivals, threads=1)
        if worker is None:
            return float("nan")
        try:
            return worker.run("memory")
        finally:
            worker.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="text file to write")
    parser.add_argument(
        "--rivals", default=sys.executable, help="Python interpreter with the other libraries"
    )
    args = parser.parse_args()
    fast_weights = sum(p.nbytes for p in build(CASE).parameters())
    lines = [
        f"# torch {torch.__version__}, {time.strftime('%Y-%m-%d')}: {CASE.name}, order 2, MB",
        f"{'inner steps':<20}"
        + "".join(f"{k:>9}" for k in STEPS)
        + f"{'5 to 50, w/o weights':>24}",
    ]
    print("\n".join(lines), flush=True)
    for name in CONTENDERS:
        peaks = [peak(name, replace(CASE, steps=k), args.rivals) for k in STEPS]
        bare = [value - k * fast_weights for value, k in zip(peaks, STEPS, strict=True)]
        lines.append(
            f"{name:<20}"
            + "".join(f"{value / 1e6:>9.1f}" for value in peaks)
            + f"{bare[2] / bare[1] - 1:>+24.1%}"
        )
        print(lines[-1], flush=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
