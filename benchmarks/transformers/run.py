"""Exact meta-gradients through transformers: time and memory of fastmeta, torch and JAX.

    python -m benchmarks.transformers --rivals PYTHON --out benchmarks/results/transformers-cpu

writes ``.csv``, ``.txt`` and ``.md``. Each contender runs in its own process. Its gradient is
compared with that of plain autograd before anything is timed. A row that is in the CSV file is not
measured again, except with ``--again``; the training step, to which all times are relative, is
measured anew with the missing rows. ``benchmarks/transformers/README.md`` describes the columns.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import quantiles

import torch

from benchmarks._common import case_file
from benchmarks._common.process import ContenderError, ContenderProcess
from benchmarks.transformers.cases import CASES, GPU_CASES, TRAINING_RUNS, Case, batch
from benchmarks.transformers.contenders import CONTENDERS, REFERENCES, STEP
from benchmarks.transformers.networks import build
from benchmarks.transformers.rows import Row, ordered, page, read, table, text, write


@dataclass
class Options:
    """How to measure.

    Attributes:
        rivals: Python interpreter with the other libraries.
        threads: of each process.
        rounds: maximum number of rounds per case.
        seconds: no further round of a case begins after this time.
        limit: bytes of memory that a process may allocate.
    """

    rivals: str
    threads: int
    rounds: int = 5
    seconds: float = 20.0
    limit: int | None = None


@dataclass
class _Running:
    """Process of a contender, and what is known of it."""

    process: ContenderProcess
    times: list[float] = field(default_factory=list)
    error: float = float("nan")
    reference: str = ""
    note: str = ""  # why it was stopped

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Stops the process if it fails, and keeps the reason."""
        try:
            yield
        except ContenderError as error:
            self.note = _note(str(error))
            self.process.stop()

    def row(self, case: Case, name: str) -> Row:
        """The row of its times and memory, or of the reason why there are none."""
        if self.note:
            return Row(case.name, name, note=self.note)
        times = self.times
        low, median, high = (
            quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        )
        mb = self.process.run("growth") / 1e6
        found = Row(case.name, name, median, low, high, len(times), mb)
        return replace(found, error=self.error, reference=self.reference)


def measure(case: Case, names: Sequence[str], options: Options) -> list[Row]:
    """Rows of contenders; a failure is a note in its row."""
    torch.manual_seed(0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        case_file.save(folder / "case.pt", case, build(case), batch(case))
        # All load their libraries at the same time, then compute one after another.
        running = {name: _Running(_start(name, folder, options)) for name in _all(names, case)}
        for found in running.values():
            stack.callback(found.process.stop)
        timed = {name: found for name, found in running.items() if name in (STEP, *names)}
        _compare(case, running, timed, folder)
        _time(list(timed.values()), options)
        rows = {name: found.row(case, name) for name, found in timed.items()}
    step = rows[STEP]
    for row in rows.values():
        row.times_floor = row.ms / (step.ms * case.floor)
        row.times_memory = row.mb / step.mb
        row.setting = _setting(case, options)
    return [rows[name] for name in names]


def _all(names: Sequence[str], case: Case) -> Iterator[str]:
    """The training step, what gradients are compared with, and the others."""
    exact = any(CONTENDERS[name].exact for name in names)
    references = [n for n in REFERENCES if exact and CONTENDERS[n].runs(case)]
    yield from dict.fromkeys([STEP, *references, *names])


def _start(name: str, folder: Path, options: Options) -> ContenderProcess:
    python = options.rivals if CONTENDERS[name].rival else sys.executable
    arguments = [name, f"{folder / 'case.pt'}", f"{folder / name}.pt", f"{options.threads}"]
    command = [python, "-m", "benchmarks.transformers.worker", *arguments]
    return ContenderProcess(name, command, folder, options.limit)


def _error(gradient: torch.Tensor, reference: torch.Tensor, tolerance: float) -> float:
    """Relative error of a gradient.

    Raises:
        ContenderError: if it is above the tolerance.
    """
    if gradient.shape != reference.shape:
        raise ContenderError(f"wrong gradient: {len(gradient)} numbers, not {len(reference)}")
    error = ((gradient - reference).norm() / reference.norm()).item()
    if not error <= tolerance:
        raise ContenderError(f"wrong gradient: relative error {error:.1e}")
    return error


def _compare(
    case: Case, running: Mapping[str, _Running], timed: Container[str], folder: Path
) -> None:
    """Computes the first meta-gradients, and compares them with the first exact one."""
    reference: tuple[str, torch.Tensor] | None = None
    for name, found in running.items():
        if name in timed or reference is None:
            with found.noting():
                found.process.begin()
                if CONTENDERS[name].exact:
                    gradient = torch.load(folder / f"{name}.pt")
                    reference = reference or (name, gradient)
                    found.reference = reference[0]
                    found.error = _error(gradient, reference[1], case.tolerance)
        if name not in timed:
            found.process.stop()


def _time(contenders: Sequence[_Running], options: Options) -> None:
    """Times contenders in turns."""
    begin = time.monotonic()
    for number in range(options.rounds):
        if number and time.monotonic() - begin > options.seconds:
            break
        for found in contenders:
            if not found.note:
                with found.noting():
                    found.times.append(1e3 * found.process.run())


def _note(reason: str) -> str:
    """Why there is no result: refused by the library, or failed."""
    kind, _, message = reason.partition(": ")
    if kind in ("ValueError", "NotImplementedError", "TypeError"):
        return f"refused: {re.split('[;,.] ', message)[0]}"
    if kind in ("ImportError", "ModuleNotFoundError"):
        return f"not installed: {message}"
    known = ("out of memory", "wrong gradient")
    return reason if reason.startswith(known) else f"failed: {reason[:200]}"


def _setting(case: Case, options: Options) -> str:
    threads = f"{options.threads} thread{'s' * (options.threads > 1)}"
    threads += f" ({torch.backends.cpu.get_cpu_capability()})"
    device = torch.cuda.get_device_name() if case.device == "cuda" else threads
    return f"{time.strftime('%Y-%m-%d')}, {device}, torch {torch.__version__}"


def main() -> int:
    args = _arguments()
    cases = GPU_CASES if args.device == "cuda" else (*CASES, *TRAINING_RUNS)
    chosen = args.cases or [case.name for case in (*CASES, *GPU_CASES)]
    limit = int(args.memory_limit * 1e9) if args.device == "cpu" else 0
    options = Options(args.rivals, args.threads, args.rounds, args.seconds, limit or None)
    path = args.out.with_suffix(".csv")
    rows = read(path)
    wrong = False
    for case in cases:
        if case.name not in chosen:
            continue
        wanted = [
            name
            for name, contender in CONTENDERS.items()
            if contender.runs(case) and (not args.contenders or name in args.contenders)
        ]
        done = set() if args.again else {r.contender for r in rows if r.case == case.name}
        missing = [name for name in wanted if name not in done]
        if not missing:
            continue
        begin = time.monotonic()
        found = measure(case, missing, options)
        rows = [r for r in rows if r.case != case.name or r.contender not in missing]
        rows = ordered([*rows, *found], cases)
        write(path, rows)
        args.out.with_suffix(".txt").write_text(text(cases, rows))
        args.out.with_suffix(".md").write_text(page(cases, rows))
        wrong |= any(row.note.startswith("wrong") for row in found)
        print(
            f"{table(case, ordered(found, cases))}\n({time.monotonic() - begin:.0f} s)\n",
            flush=True,
        )
    return int(wrong)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.transformers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    parser.add_argument(
        "--rivals", default=sys.executable, help="Python interpreter with the other libraries"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    names = sorted({case.name for case in (*CASES, *GPU_CASES, *TRAINING_RUNS)})
    parser.add_argument("--cases", nargs="+", choices=names, metavar="CASE", help=", ".join(names))
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        metavar="CONTENDER",
        help=", ".join(CONTENDERS),
    )
    parser.add_argument("--rounds", type=int, default=5, help="maximum number of rounds per case")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="no further round of a case begins after this"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--memory-limit", type=float, default=16.0, help="GB per process on the CPU; 0: none"
    )
    parser.add_argument("--again", action="store_true", help="measure finished rows again")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a CUDA GPU, but torch sees no CUDA device.")
    return args
