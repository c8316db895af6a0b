"""Runs resumed in another process equal uninterrupted ones, bit for bit.

``python -m tests.stress.resumes`` trains every method on sines and digits, with every stateful
variant of GSL: weights, optimizer, schedule, generators, log and results must agree.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

from fastmeta.learners import METHODS
from tests.stress.training_runs import RUNS, check_same, essence, finish, record, start

STEPS = 8
CASES: dict[str, dict[str, Any]] = {
    # MOML needs tasks with ids, which sines without a grid have not.
    **{method: {"method": method} for method in METHODS if method != "moml"},
    **{
        f"gsl-{variant}": {"method": "gsl", "metagrad_options": {"variant": variant}}
        for variant in ("R2", "R2p", "R4")
    },
    "batched": {"method": "gsl", "engine": "batched"},
    "loop": {"method": "gsl", "engine": "loop", "aggregation": "pcgrad"},  # draws random numbers
}


def compare(work: Path, name: str, dataset: str, after: int) -> None:
    """Stops a run after this many steps, resumes it, and compares it with an uninterrupted one."""
    options = {**RUNS[dataset], "dataset": dataset, "steps": STEPS, **CASES[name]}
    whole, parts = (work / f"{dataset}-{name}-{kind}" for kind in ("whole", "parts"))
    finish(start(whole, options), whole)
    finish(start(parts, options, stop_after=after), parts)
    finish(start(parts, options), parts)
    check_same(parts, essence(whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--datasets", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--seed", type=int, default=0, help="of the steps after which runs stop")
    parser.add_argument("--record", action="store_true", help="write the result to results.md")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as work:
        for dataset in arguments.datasets:
            for name in arguments.cases:
                compare(Path(work), name, dataset, draw.randrange(1, STEPS))
    result = (
        f"{len(arguments.cases)} methods and variants on {' and '.join(arguments.datasets)}: "
        "stopped once, resumed in another process, bit-identical to runs that never stopped"
    )
    print(result)
    if arguments.record:
        record("python -m tests.stress.resumes", result)


if __name__ == "__main__":
    main()
