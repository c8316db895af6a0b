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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import torch

from benchmarks._common import case_file
from benchmarks._common.process import Contender, ContenderError
from benchmarks.transformers.cases import CASES, GPU_CASES, Case, batch
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
    """A process that has computed its gradient."""

    process: Contender
    error: float = float("nan")
    reference: str = ""
    times: list[float] = field(default_factory=list)


def measure(case: Case, names: Sequence[str], options: Options) -> list[Row]:
    """Rows of the contenders, and of the training step; a failure is a note in its row."""
    torch.manual_seed(0)
    rows: dict[str, Row] = {}
    running: dict[str, _Running] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        case_file.save(folder / "case.pt", case, build(case), batch(case))
        # All load their libraries at the same time, then compute one after another.
        processes = {name: _start(name, folder, options) for name in _all(names, case)}
        for process in processes.values():
            stack.callback(process.stop)
        reference: tuple[str, torch.Tensor] | None = None
        for name, process in processes.items():
            wanted = name in names or name == STEP
            if wanted or reference is None:
                try:
                    process.begin()
                    found = _Running(process)
                    if CONTENDERS[name].exact:
                        gradient = torch.load(folder / f"{name}.pt")
                        reference = reference or (name, gradient)
                        found.reference = reference[0]
                        found.error = _error(gradient, reference[1], case.tolerance)
                    running[name] = found
                except ContenderError as error:
                    rows[name] = Row(case.name, name, note=_note(str(error)))
            if not wanted or name not in running:
                running.pop(name, None)
                process.stop()
        _time(running, rows, case, options)
        for name, found in running.items():
            if name not in rows:
                rows[name] = _row(case, name, found)
    step = rows[STEP]
    kept = [row for name, row in rows.items() if name in names]
    for row in kept:
        row.times_floor = row.ms / (step.ms * case.floor)
        row.times_memory = row.mb / step.mb
        row.setting = _setting(case, options)
    return kept


def _all(names: Sequence[str], case: Case) -> Iterator[str]:
    """The training step, what gradients are compared with, and the others."""
    exact = any(CONTENDERS[name].exact for name in names)
    references = [n for n in REFERENCES if exact and CONTENDERS[n].runs(case)]
    yield from dict.fromkeys([STEP, *references, *names])


def _start(name: str, folder: Path, options: Options) -> Contender:
    python = options.rivals if CONTENDERS[name].rival else sys.executable
    arguments = [name, f"{folder / 'case.pt'}", f"{folder / name}.pt", f"{options.threads}"]
    command = [python, "-m", "benchmarks.transformers.worker", *arguments]
    return Contender(name, command, folder, options.limit)


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


def _note(reason: str) -> str:
    """Why there is no result: refused by the library, or failed."""
    kind, _, message = reason.partition(": ")
    if kind in ("ValueError", "NotImplementedError", "TypeError"):
        return f"refused: {re.split('[;,.] ', message)[0]}"
    if kind in ("ImportError", "ModuleNotFoundError"):
        return f"not installed: {message}"
    known = ("out of memory", "wrong gradient")
    return reason if reason.startswith(known) else f"failed: {reason[:200]}"


def _time(running: dict[str, _Running], rows: dict[str, Row], case: Case, options: Options) -> None:
    """Times the contenders in turns; one that dies is left out from then on."""
    begin = time.monotonic()
    for number in range(options.rounds):
        if number and time.monotonic() - begin > options.seconds:
            break
        for name, found in running.items():
            if name in rows:
                continue
            try:
                found.times.append(1e3 * found.process.run())
            except ContenderError as error:
                rows[name] = Row(case.name, name, note=_note(str(error)))


def _row(case: Case, name: str, found: _Running) -> Row:
    times = found.times
    low, median, high = quantiles(times, n=4) if len(times) > 1 else times * 3
    mb = found.process.run("growth") / 1e6
    row = Row(case.name, name, median, low, high, len(times), mb)
    row.error, row.reference = found.error, found.reference
    return row


def _setting(case: Case, options: Options) -> str:
    device = torch.cuda.get_device_name() if case.device == "cuda" else f"{options.threads} threads"
    return f"{time.strftime('%Y-%m-%d')}, {device}, torch {torch.__version__}"


def main() -> int:
    args = _arguments()
    cases = GPU_CASES if args.device == "cuda" else CASES
    options = Options(
        args.rivals, args.threads, args.rounds, args.seconds, int(args.memory_limit * 1e9) or None
    )
    path = args.out.with_suffix(".csv")
    rows = read(path)
    wrong = False
    for case in cases:
        if args.cases and case.name not in args.cases:
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
    names = sorted({case.name for case in (*CASES, *GPU_CASES)})
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
        "--memory-limit", type=float, default=16.0, help="GB per process; 0 for no limit"
    )
    parser.add_argument("--again", action="store_true", help="measure finished rows again")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a CUDA GPU, but torch sees no CUDA device.")
    return args
