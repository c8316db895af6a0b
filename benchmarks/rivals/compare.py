"""Time of meta-gradients: fastmeta against other libraries.

Each contender runs in its own process, with the Python interpreter where it is installed. The
contenders are timed in turns of a tenth of a second, or one call. Their gradients are compared
before anything is timed. Contenders that are not installed are skipped with a message.

    python -m benchmarks.rivals.compare --out benchmarks/results/rivals-cpu --rivals PYTHON

writes ``.csv``, ``.txt`` and ``.png``. ``benchmarks/rivals/README.md`` describes how to install the
other libraries.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import torch

from benchmarks._common.process import ContenderError, ContenderProcess
from benchmarks.rivals.cases import CASES, Case, save
from benchmarks.rivals.chart import FLOOR, draw
from fastmeta.backend import build_info

REFERENCE, RIVAL = "plain_autograd", "learn2learn_maml"
RIVALS = (REFERENCE, "torch_func", RIVAL, "higher_loop", "torchopt_meta", "jax_jit")
OURS = ("fastmeta_engine", "fastmeta_kept", FLOOR)
# Limits the instructions of fastmeta, of torch, and of torch's libraries.
AVX2 = {
    "FASTMETA_CPU_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
# Relative error. In float32, ReLU and pooling may resolve ties differently, and inner steps amplify
# this: after five, plain autograd differed by 8 % from float64 (5-way 5-shot).
AGREEMENT = 0.1


@dataclass
class Row:
    """Milliseconds of a contender in a case."""

    case: str
    contender: str
    ms: float
    low: float
    high: float
    error: float  # of the gradient, relative to that of plain autograd
    times_rival: float = float("nan")  # speedup over learn2learn
    share: float = float("nan")  # the time of the matrix products alone, as a part of this one


def start(
    name: str, case_file: Path, rivals: str, threads: int
) -> tuple[ContenderProcess | None, Path]:
    """A process that has computed its gradient, and the file of it; prints why if there is none."""
    gradient_file = case_file.with_name(f"{name}.pt")
    python = rivals if name in RIVALS else sys.executable
    command = [python, "-m", "benchmarks.rivals.worker", name, str(case_file), str(gradient_file)]
    contender = ContenderProcess(name, [*command, str(threads)], case_file.parent)
    try:
        contender.begin()
    except ContenderError as reason:
        print(f"  {name}: skipped ({reason})")
        contender.stop()
        return None, gradient_file
    return contender, gradient_file


def measure(
    case: Case, names: Sequence[str], rivals: str, seconds: float, threads: int
) -> list[Row]:
    """Times all contenders that can run the case; exits if a gradient is wrong."""
    workers: list[ContenderProcess] = []
    with tempfile.TemporaryDirectory() as folder:
        case_file = Path(folder) / "case.pt"
        save(case, case_file)
        try:
            errors, reference = {}, torch.empty(0)
            for name in names:
                worker, gradient_file = start(name, case_file, rivals, threads)
                if worker is None:
                    continue
                workers.append(worker)
                errors[name] = float("nan")  # for contenders without a gradient
                if gradient_file.exists():
                    gradient = torch.load(gradient_file)
                    reference = gradient if name == REFERENCE else reference
                    errors[name] = ((gradient - reference).norm() / reference.norm()).item()
                if errors[name] > AGREEMENT:
                    raise SystemExit(
                        f"{case.title}: expected the gradient of {REFERENCE}, got one with a "
                        f"relative error of {errors[name]:.1e} from {name}."
                    )
            times: dict[str, list[float]] = {worker.name: [] for worker in workers}
            stop = time.monotonic() + seconds
            while time.monotonic() < stop or len(times[REFERENCE]) < 4:
                for worker in workers:
                    times[worker.name].append(1e3 * worker.run())
        finally:
            for worker in workers:
                worker.stop()
    rows = []
    for name, values in times.items():
        low, median, high = quantiles(values, n=4)
        rows.append(Row(case.title, name, median, low, high, errors[name]))
    by_name = {row.contender: row.ms for row in rows}
    for row in rows:
        row.times_rival = by_name.get(RIVAL, float("nan")) / row.ms
        row.share = by_name.get(FLOOR, float("nan")) / row.ms
    return rows


def table(rows: list[Row]) -> str:
    head = f"{'':<20}{'ms':>10}{'quartiles':>24}{'x learn2learn':>16}{'floor share':>12}"
    lines = [f"\n{rows[0].case}", head]
    for row in rows:
        spread = f"{row.low:.2f} .. {row.high:.2f}"
        ratios = f"{row.times_rival:>16.2f}{row.share:>12.2f}"
        lines.append(f"{row.contender:<20}{row.ms:>10.2f}{spread:>24}{ratios}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    parser.add_argument(
        "--rivals", default=sys.executable, help="Python interpreter with the other libraries"
    )
    parser.add_argument(
        "--only", nargs="*", default=[""], help="run cases whose title contains one of these"
    )
    parser.add_argument("--without", nargs="*", default=[], help="contenders to skip")
    parser.add_argument("--seconds", type=float, default=20.0, help="time per case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--avx2", action="store_true", help="no AVX-512 (does not limit JAX)")
    args = parser.parse_args()
    if args.avx2:
        os.environ.update(AVX2)
    isa = "avx2" if args.avx2 else build_info().cpu_isa
    head = (
        f"# torch {torch.__version__}, {args.threads} threads, {isa}, {time.strftime('%Y-%m-%d')}"
    )
    names = [name for name in (*RIVALS, *OURS) if name not in args.without]
    rows: list[Row] = []
    text = [head]
    for case in CASES:
        if any(part in case.title for part in args.only):
            found = measure(case, names, args.rivals, args.seconds, args.threads)
            rows += found
            text.append(table(found))
            print(text[-1], flush=True)
    args.out.with_suffix(".txt").write_text("\n".join(text) + "\n")
    with args.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["case", "contender", "ms", "low", "high", "error", "times_learn2learn", "floor_share"]
        )
        for r in rows:
            numbers = (r.ms, r.low, r.high, r.error, r.times_rival, r.share)
            writer.writerow([r.case, r.contender, *(f"{v:.4g}" for v in numbers)])
    draw([(r.case, r.contender, r.times_rival) for r in rows], args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
