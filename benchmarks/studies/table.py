"""Regenerates a table of results on real data: trains, measures costs, writes its page.

    python -m benchmarks.studies.table benchmarks/tables/omniglot-5w1s.toml --data ROOT

A finished cell (a method with a seed) is a row of the CSV beside the TOML file and is never run
again; an interrupted one resumes from its last checkpoint. Several processes can work on the same
table. Costs are measured once all cells are finished, or with ``--costs``.
"""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

import torch

import fastmeta
from benchmarks.studies.cells import Results, check_same, run_cell
from benchmarks.studies.costs import measure_costs
from benchmarks.studies.page import write_page
from benchmarks.studies.plan import read_plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="TOML file of the table")
    parser.add_argument("--data", help="folder of the datasets (default: $FASTMETA_DATA)")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"), help="folder of the runs")
    parser.add_argument("--rows", nargs="+", default=[], help="run only these rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="run only these seeds")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time limit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--costs",
        action="store_true",
        help="measure costs even if cells are missing or costs exist",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fastmeta.keep_freed_memory()
    table = read_plan(args.table, {} if args.data is None else {"data_root": args.data})
    folder, runs = args.table.parent, args.runs / table.name
    results = Results(folder / f"{table.name}.csv", list(table.rows))
    end = time.monotonic() + 60 * args.minutes
    stop = _Stop()
    for cell in table.cells(args.rows, args.seeds):
        done = results.read().get((cell.row.name, cell.seed))
        if done:
            check_same(table, cell, done)
        elif not stop.requested and time.monotonic() < end:
            print(f"{table.name}: {cell.row.name}, seed {cell.seed}", flush=True)
            found = run_cell(table, cell, runs, lambda: stop.requested or time.monotonic() > end)
            if found:
                results.add(found)
                print({k: found[k] for k in ("status", "mean", "ci95") if k in found}, flush=True)
    costs = folder / f"{table.name}-costs.csv"
    complete = len(results.read()) >= len(table.cells())
    if args.costs or (complete and not costs.exists()):
        measure_costs(table, runs, costs, seconds=6.0)
    write_page(table, folder)


class _Stop:
    """Whether SIGTERM was received, which stops the run after the current meta-step."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.requested = True


if __name__ == "__main__":
    main()
