"""Kills training runs with ``kill -9``: only steps since the last checkpoint are lost.

``python -m tests.stress.kills --kills 100`` trains on sines and digits in processes that are killed
at random moments, half of them while a file is being written, and then resumed. After each kill
every checkpoint must be intact, and the newest at most ``checkpoint_every`` steps old. In the end
weights, optimizer, schedule, generators, log and results must be, bit for bit, those of an
uninterrupted run.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from multiprocessing.context import ForkProcess
from pathlib import Path

from fastmeta.train.checkpoint import checkpoints, load_checkpoint
from tests.stress.training_runs import (
    CHECKPOINT_EVERY,
    RUNS,
    check_same,
    complete_rows,
    essence,
    finish,
    record,
    start,
)

MAX_STEPS = 10  # from one kill to the next
_WRITING = ".*.tmp"  # files that are being written


class Kills:
    """Kills training runs, and counts the kills.

    Args:
        work: an empty folder.
        wanted: total number of kills.
        seed: of the moments.
    """

    def __init__(self, work: Path, wanted: int, seed: int) -> None:
        self.work = work
        self.wanted = wanted
        self.random = random.Random(seed)
        self.kills = 0
        self.in_writing = 0
        self.max_lost = 0
        self.runs = 0

    def kill_and_compare(self, name: str) -> None:
        """Kills and resumes a run until it finishes, and compares it with an uninterrupted one."""
        options = {"dataset": name, "seed": self.random.randrange(1000), **RUNS[name]}
        whole, folder = (self.work / f"{name}-{self.runs}-{kind}" for kind in ("whole", "killed"))
        finish(start(whole, options), whole)
        while self.kills < self.wanted and self._kill(start(folder, options), folder):
            self._check(folder)
        finish(start(folder, options), folder)
        check_same(folder, essence(whole))
        self.runs += 1

    def _kill(self, process: ForkProcess, folder: Path) -> bool:
        """Kills at a random moment; false if the process finished before it."""
        left = set(folder.glob(_WRITING))  # by earlier kills
        step = _logged(folder) + self.random.randrange(MAX_STEPS)
        _wait(process, lambda: _logged(folder) >= step)
        process.join(self.random.choice([0.02, 1]) * self.random.random())
        if self.random.random() < 0.5:
            _wait(process, lambda: not left.issuperset(folder.glob(_WRITING)))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            finish(process, folder)
            return False
        self.kills += 1
        self.in_writing += not left.issuperset(folder.glob(_WRITING))
        return True

    def _check(self, folder: Path) -> None:
        found = checkpoints(folder)
        for path in [*found, *folder.glob("best.pt")]:
            load_checkpoint(path)
        saved = load_checkpoint(found[-1])["step"] if found else 0
        logged = _logged(folder)
        self.max_lost = max(self.max_lost, logged - saved)
        if logged - saved > CHECKPOINT_EVERY:
            sys.exit(f"{folder}: step {logged} was logged, but the newest checkpoint has {saved}")


def _logged(folder: Path) -> int:
    return max((int(row["step"]) for row in complete_rows(folder)), default=0)


def _wait(process: ForkProcess, until: Callable[[], bool]) -> None:
    while process.is_alive() and not until():
        time.sleep(0.001)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the moments of kills and of the runs"
    )
    parser.add_argument("--record", action="store_true", help="write the result to results.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        kills = Kills(Path(work), arguments.kills, arguments.seed)
        names = cycle(RUNS)
        while kills.kills < arguments.kills:
            kills.kill_and_compare(next(names))
    result = (
        f"{kills.kills} kills in {kills.runs} runs, {kills.in_writing} while a file was being "
        f"written; at most {kills.max_lost} steps lost, with a checkpoint every "
        f"{CHECKPOINT_EVERY}; all runs ended bit-identical to uninterrupted ones"
    )
    print(result)
    if arguments.record:
        record(f"python -m tests.stress.kills --kills {arguments.kills}", result)


if __name__ == "__main__":
    main()
