"""Shared parts of the fuzzers: hypothesis in processes that may crash, hang or exhaust memory."""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

MAX_MEMORY = 2**29  # bytes that one example may take
MAX_SECONDS = 60  # for one example: longer counts as an endless loop
_ADDRESS_SPACE = 2**32  # bytes beyond those at the start, so that the machine survives a bomb

Check = Callable[[st.DataObject], str]  # tries one example and returns its outcome


def fuzz(
    targets: Mapping[str, Check], examples: int, minutes: float | None, seed: int
) -> Counter[str]:
    """Tries this many examples of each target in turn, in rounds until the minutes are over.

    A round with a failure is the last one, and ends the program.

    Returns:
        How often each outcome occurred.
    """
    total: Counter[str] = Counter()
    failures = []
    end = time.monotonic() + 60 * (minutes or 0)
    while not failures:
        for name, check in targets.items():
            try:
                total += _in_a_process(name, check, examples, seed)
            except FailedError as failure:
                failures.append(f"{name}: {failure}")
        seed += 1
        if time.monotonic() >= end:
            break
    if failures:
        sys.exit("\n".join(failures))
    return total


class FailedError(Exception):
    """A failed process; the message says how to reproduce it."""


def _in_a_process(name: str, check: Check, examples: int, seed: int) -> Counter[str]:
    # A fork has everything imported; this process itself never computes.
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(check, examples, seed, there))
    process.start()
    there.close()
    try:
        counts: Counter[str] = here.recv()
    except EOFError:
        counts = Counter()
    process.join()
    if process.exitcode or not counts:
        again = f"--targets {name} --examples {examples} --seed {seed}"
        failure = f"exit status {process.exitcode}; to repeat it: {again}"
        raise FailedError(failure)
    return counts


def _run(check: Check, examples: int, seed: int, there: Connection) -> None:
    faulthandler.enable()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    counts: Counter[str] = Counter()

    def one(data: st.DataObject) -> None:
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
        faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
        outcome = check(data)
        faulthandler.cancel_dump_traceback_later()
        taken = _memory("VmHWM") - before
        assert taken <= MAX_MEMORY, f"took {taken} bytes"
        counts[outcome] += 1

    quietly = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    try:
        hypothesis.seed(seed)(quietly(given(st.data())(one)))()
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
    there.send(counts)


def _memory(name: str) -> int:
    """Resident memory in bytes, current (``VmRSS``) or peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def main(
    script: str, purpose: str | None, targets: Mapping[str, Check], describe: Callable[..., str]
) -> None:
    """The command line of a fuzzer; ``describe`` makes a result of counts and targets."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--examples", type=int, default=200, help="of each target, in each round")
    parser.add_argument("--minutes", type=float, help="repeat with other examples for this long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", default=list(targets), choices=targets)
    parser.add_argument("--record", action="store_true", help="write the result to results.md")
    arguments = parser.parse_args()
    chosen = {name: targets[name] for name in arguments.targets}
    result = describe(
        fuzz(chosen, arguments.examples, arguments.minutes, arguments.seed), list(chosen)
    )
    print(result)
    if arguments.record:
        from tests.stress.training_runs import record  # which imports much that fuzzers do not need

        often = (
            f"--minutes {arguments.minutes:g}"
            if arguments.minutes
            else f"--examples {arguments.examples}"
        )
        seed = f" --seed {arguments.seed}" if arguments.seed else ""
        record(f"python -m tests.stress.{script} {often}{seed}", result)
