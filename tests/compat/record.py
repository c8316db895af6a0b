"""Writes recorded.json: what learn2learn 0.2.0 and higher 0.2.1 compute, where they are installed.

    python -m tests.compat.record

Run it from the root of the repository, with both libraries installed as described in
``benchmarks/rivals/README.md``. Where they are not installed, the tests compare with the file.
"""

from __future__ import annotations

import json
from pathlib import Path

import higher
import learn2learn
import torch

from tests.compat import higher_loops, sampling, training_loops

SEED = 1


def main() -> None:
    torch.set_num_threads(1)
    recorded: dict[str, object] = {
        "torch": torch.__version__,
        "draws": sampling.draws(learn2learn, SEED),
        "models": {
            name: sampling.fingerprint(model)
            for name, model in sampling.models(learn2learn, SEED).items()
        },
    }
    for name, library, loops in (
        ("higher", higher, higher_loops.CASES),
        ("learn2learn", learn2learn, training_loops.LOOPS),
    ):
        recorded[name] = found = {}
        for loop, run in loops.items():
            training_loops.seed(SEED)
            found[loop] = run(library, torch.float64)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in recorded.items()]
    Path(__file__).with_name("recorded.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
