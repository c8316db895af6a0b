"""Detects changes of numerical behaviour: ``python tests/behaviour.py record|compare``.

``record`` runs a few seeded meta-steps of every method, meta-gradient, aggregation, adaptation,
engine and GSL variant, and short training runs, and writes ``behaviour.json``: for each case the
SHA-256 of all losses, gradients and parameters, and a few norms and sums. ``compare`` runs the
cases again, lists those that differ, and exits with 1 if there are any.

Everything runs on one thread, with instructions that every processor of the architecture has, so
that results are bitwise reproducible from machine to machine. With another architecture or version
of torch, norms and sums are compared with a tolerance instead of digests.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frozen.problems import Trace

ENVIRONMENT = {  # read by libraries when they are loaded
    "ATEN_CPU_CAPABILITY": "default",
    "FASTMETA_CPU_ISA": "baseline",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "PYTHONHASHSEED": "0",
}
RECORDED = Path(__file__).with_suffix(".json")
TOLERANCE = 1e-2  # relative
SENSITIVE = (  # cases that amplify rounding differences, which only digests can compare
    "adaptation/adam/exact/conv/",
    "adaptation/adam/recursion/conv/",
    "gsl/variant=R5/conv/",
    "train/digits/imaml",
    "train/digits/maml++",
)


def outcome(run: Callable[[], Trace]) -> Any:
    import torch
    from frozen.runs import UnsuitableError

    torch.manual_seed(0)
    try:
        return run().to_list()
    except UnsuitableError:
        return "unsuitable"


def run_all(cases: dict[str, Callable[[], Trace]], stop: bool) -> dict[str, Any]:
    """The outcome of each case; an error is one, too, unless it is to ``stop`` the run."""
    import torch

    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False  # its blocking depends on the sizes of the caches
    warnings.simplefilter("ignore")
    begun, found = time.monotonic(), {}
    for name, run in cases.items():
        try:
            found[name] = outcome(run)
        except Exception as error:
            if stop:
                raise RuntimeError(f"case {name} failed") from error
            found[name] = f"{type(error).__name__}: {error}"
    print(f"{len(found)} cases in {time.monotonic() - begun:.0f} s")
    return found


def difference(old: Any, new: Any) -> float:
    """The largest relative difference between the numbers of two outcomes."""
    if isinstance(old, str) or isinstance(new, str) or len(old) != len(new):
        return 0.0 if old == new else float("inf")
    worst = 0.0
    for a, b in zip(old[1:], new[1:], strict=True):
        if str(a) != str(b):  # a NaN equals a NaN
            relative = abs(a - b) / max(abs(a), abs(b))
            worst = max(worst, relative if relative == relative else float("inf"))
    return worst


def compare(recorded: dict[str, Any], found: dict[str, Any], here: dict[str, str]) -> int:
    exact = all(recorded[key] == value for key, value in here.items())
    if not exact:
        print(
            f"Recorded with torch {recorded['torch']} on {recorded['machine']}, compared with "
            f"{here['torch']} on {here['machine']}: only norms and sums are compared, with the "
            f"relative tolerance {TOLERANCE:g}, and none of {', '.join(SENSITIVE)}."
        )
    bad = 0
    for name, new in found.items():
        old = recorded["cases"].get(name, "not recorded")
        apart = difference(old, new)
        close = apart <= TOLERANCE or name.startswith(SENSITIVE)
        if str(old) != str(new) if exact else not close:
            bad += 1
            print(f"{name}: relative difference {apart:.2g}\n  recorded {old}\n  found    {new}")
    print(f"{bad} of {len(found)} cases differ")
    return int(bad > 0)


def main() -> int:
    import torch
    from frozen.cases import all_cases

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("record", "compare"))
    parser.add_argument("--only", default="", metavar="NAME", help="cases whose name contains this")
    given = parser.parse_args()
    here = {"torch": torch.__version__.partition("+")[0], "machine": platform.machine()}
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {"cases": {}}
    cases = all_cases()
    chosen = {name: run for name, run in cases.items() if given.only in name}
    if given.command == "record" and given.only and recorded != {**recorded, **here}:
        parser.error(f"{RECORDED.name} is of another torch or machine; record all cases instead")
    found = run_all(chosen, stop=given.command == "record")
    if given.command == "compare":
        gone = [name for name in recorded["cases"] if given.only in name and name not in cases]
        return compare(recorded, {**found, **dict.fromkeys(gone, "no such case")}, here)
    kept = {**recorded["cases"], **found}
    rows = [f"{json.dumps(name)}: {json.dumps(kept[name])}" for name in cases if name in kept]
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in here.items())
    RECORDED.write_text("{\n" + head + '"cases": {\n' + ",\n".join(rows) + "\n}}\n")
    return 0


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    sys.exit(main())
