"""Trains the run that a JSON file describes; the last rank kills itself once.

torchrun ... killed_rank.py CONFIG STEP
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from fastmeta.train import configure, train_or_resume


def main() -> None:
    config = configure(json.loads(Path(sys.argv[1]).read_text()))
    last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    first_try = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    taken = 0

    def stop() -> bool:
        nonlocal taken
        taken += 1
        if last and first_try and taken == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    train_or_resume(config, stop)


if __name__ == "__main__":
    main()
