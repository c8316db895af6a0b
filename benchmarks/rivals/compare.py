"""Meta-gradients of fastmeta and of the others, side by side.

Every contender runs in a process of its own, in the interpreter that has it; they take turns of a
tenth of a second, or one call. Gradients are compared before anything is timed. What an interpreter
lacks is left out, and said so.

    python benchmarks/rivals/compare.py --out benchmarks/results/rivals-cpu --rivals PYTHON

writes ``.csv``, ``.txt`` and ``.png``. ``benchmarks/rivals/README.md`` says how to get the others.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import IO

import torch
from cases import CASES, Case, save
from chart import draw

HERE = Path(__file__).parent
REFERENCE, RIVAL = "plain_autograd", "learn2learn_maml"
RIVALS = (REFERENCE, "torch_func", RIVAL, "higher_loop", "torchopt_meta", "jax_jit")
OURS = ("fastmeta_engine", "fastmeta_kept", "matrix_floor")
# Relative. In float32 ReLU and pooling may take the other side of a tie, and inner steps make more
# of it: plain autograd's own gradient was off by 8 % after five (5-way 5-shot, against float64).
AGREEMENT = 0.1


@dataclass
class Row:
    """A contender's milliseconds in a case."""

    case: str
    contender: str
    ms: float
    low: float
    high: float
    error: float  # of the gradient, relative to plain autograd's
    times_rival: float = float("nan")  # how often faster than learn2learn


class Worker:
    """A contender's process."""

    def __init__(self, name: str, python: str, case_file: Path, threads: int) -> None:
        self.name = name
        self.gradient_file = case_file.with_name(f"{name}.pt")
        self.messages = case_file.with_name(f"{name}.txt").open("w+")
        command = [python, str(HERE / "worker.py"), name, str(case_file)]
        self.process = subprocess.Popen(
            [*command, str(self.gradient_file), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.messages,
            text=True,
        )

    def line(self) -> str:
        """What the process says next."""
        return _open(self.process.stdout).readline().strip()

    def ready(self) -> bool:
        """Waits for the gradient; says why there is none."""
        if self.line() == "ready":
            return True
        self.messages.seek(0)
        why = self.messages.read().strip().splitlines() or ["it died"]
        print(f"  {self.name}: left out ({why[-1]})")
        return False

    def run(self, what: str = "") -> float:
        """The seconds of one meta-gradient, or the bytes it allocates (``"memory"``)."""
        stream = _open(self.process.stdin)
        stream.write(f"{what}\n")
        stream.flush()
        return float(self.line())

    def stop(self) -> None:
        """Ends the process."""
        self.messages.close()
        self.process.kill()
        self.process.communicate()


def _open(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def measure(
    case: Case, names: Sequence[str], rivals: str, seconds: float, threads: int
) -> list[Row]:
    """All contenders that can run the case; raises if a gradient is wrong."""
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        case_file = Path(folder) / "case.pt"
        save(case, case_file)
        try:
            errors, reference = {}, torch.empty(0)
            for name in names:
                python = rivals if name in RIVALS else sys.executable
                workers.append(Worker(name, python, case_file, threads))
                if not workers[-1].ready():
                    workers.pop().stop()
                    continue
                errors[name] = float("nan")  # what computes something else
                if workers[-1].gradient_file.exists():
                    gradient = torch.load(workers[-1].gradient_file)
                    reference = gradient if name == REFERENCE else reference
                    errors[name] = ((gradient - reference).norm() / reference.norm()).item()
                if errors[name] > AGREEMENT:
                    raise SystemExit(f"{case.title}: {name} is off by {errors[name]:.1e}.")
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
    rival = [row.ms for row in rows if row.contender == RIVAL]
    for row in rows:
        row.times_rival = rival[0] / row.ms if rival else float("nan")
    return rows


def table(rows: list[Row]) -> str:
    lines = [f"\n{rows[0].case}", f"{'':<20}{'ms':>10}{'quartiles':>24}{'x learn2learn':>16}"]
    for row in rows:
        spread = f"{row.low:.2f} .. {row.high:.2f}"
        lines.append(f"{row.contender:<20}{row.ms:>10.2f}{spread:>24}{row.times_rival:>16.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    parser.add_argument("--rivals", default=sys.executable, help="interpreter that has the others")
    parser.add_argument("--only", default="", help="part of the cases' titles")
    parser.add_argument("--without", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--seconds", type=float, default=20.0, help="a case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    head = f"# torch {torch.__version__}, {args.threads} threads, {time.strftime('%Y-%m-%d')}"
    names = [name for name in (*RIVALS, *OURS) if name not in args.without]
    rows: list[Row] = []
    text = [head]
    for case in CASES:
        if args.only in case.title:
            found = measure(case, names, args.rivals, args.seconds, args.threads)
            rows += found
            text.append(table(found))
            print(text[-1], flush=True)
    args.out.with_suffix(".txt").write_text("\n".join(text) + "\n")
    with args.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "contender", "ms", "low", "high", "error", "times_learn2learn"])
        for r in rows:
            numbers = (r.ms, r.low, r.high, r.error, r.times_rival)
            writer.writerow([r.case, r.contender, *(f"{v:.4g}" for v in numbers)])
    draw([(r.case, r.contender, r.times_rival) for r in rows], args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
