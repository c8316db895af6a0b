"""Records results of learn2learn 0.2.0 and higher 0.2.1 in saved.json.

    python tests/compat/record.py

``benchmarks/rivals/README.md`` says how to install the libraries. Where they are not installed, the
tests compare with the recorded results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import higher
import learn2learn
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))

import compat_draws  # noqa: E402
import compat_loops  # noqa: E402
import higher_loops  # noqa: E402

SEED = 1


def main() -> None:
    torch.set_num_threads(1)
    saved: dict[str, object] = {
        "torch": torch.__version__,
        "draws": compat_draws.draws(learn2learn, SEED),
        "models": {
            name: compat_draws.fingerprint(model)
            for name, model in compat_draws.models(learn2learn, SEED).items()
        },
    }
    for name, library, loops in (
        ("higher", higher, higher_loops.CASES),
        ("learn2learn", learn2learn, compat_loops.LOOPS),
    ):
        saved[name] = found = {}
        for loop, run in loops.items():
            compat_loops.seed(SEED)
            found[loop] = run(library, torch.float64)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in saved.items()]
    (HERE / "saved.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
