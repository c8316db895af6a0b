"""Scores, fidelity and costs of all variants of our reconstruction of GSL.

Trains each candidate with the defaults of ``fastmeta train`` (except for the number of meta-steps),
all with the same tasks and initial weights. During training, it compares meta-gradients on held-out
meta-batches with the exact ones: cosine and ratio of norms. After training, it measures the score
on the test tasks, and with the loop engine the time of a step relative to FOMAML, interleaved, and
its peak memory.

    python -m benchmarks.studies.gsl_study --data ROOT --steps 1000 --seeds 0 1 2

appends to a CSV (candidates already in it are not run again), then writes the plots beside it and
the page ``docs/gsl-study.md``, whose numbers all come from the CSV.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from benchmarks._common.memory import peak_bytes
from benchmarks._common.timing import interleaved
from benchmarks.studies.gsl_candidates import EVERY, candidates
from benchmarks.studies.gsl_report import CURVE_PLOT, draw, draw_curve, write_page
from fastmeta.data import TaskSource
from fastmeta.evaluation import evaluate
from fastmeta.learners import MetaLearner, compare_with_exact
from fastmeta.schedules import schedule
from fastmeta.train import TrainConfig, configure
from fastmeta.train.builders import build_learner, build_module, metric_of
from fastmeta.train.sources import task_source

CPU = torch.device("cpu")
KEYS = ("dataset", "candidate", "seed", "steps")
# Columns of the CSV: the attributes of a comparison with the exact meta-gradient.
MEASURED = ("cosine", "norm_ratio", "task_cosine", "task_norm_ratio")
FINAL = ("score", "ci95", "ms", "time", "peak_mb", "cpu_s")
FIRST_HELD_OUT, COMPARED = 10**6, 4  # meta-batches for comparisons with the exact gradient
ROUNDS = 5


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.costs:
        measure_costs(args)
    else:
        train_candidates(args)
    rows = [row for row in _read(args.out) if row["steps"] == str(args.steps)]
    plot = args.out.with_suffix(".png")
    draw(rows, plot)
    draw_curve(rows, plot.with_name(CURVE_PLOT))
    write_page(rows, args.page, plot)


def train_candidates(args: argparse.Namespace) -> None:
    """Trains the candidates that are not in the CSV yet."""
    done = {tuple(row[key] for key in KEYS) for row in _read(args.out) if row["score"]}
    for seed in args.seeds:
        for dataset in args.datasets:
            for name, options in candidates(dataset, args.steps).items():
                keys = dict(zip(KEYS, (dataset, name, str(seed), str(args.steps)), strict=True))
                if args.only not in name or tuple(keys.values()) in done:
                    continue
                base = {"dataset": dataset, "data_root": args.data, "seed": seed}
                config = configure({**base, "steps": args.steps, "method": "gsl"}, options)
                _append(args.out, [{**keys, **row} for row in study(config, args.every)])


def measure_costs(args: argparse.Namespace) -> None:
    """Measures time and memory of the candidates in the CSV again, one after the other."""
    rows = _read(args.out)
    for dataset in args.datasets:
        for name, options in candidates(dataset, args.steps).items():
            finished = [r for r in rows if (r["dataset"], r["candidate"]) == (dataset, name)]
            finished = [r for r in finished if r["score"] and r["steps"] == str(args.steps)]
            if args.only not in name or not finished:
                continue
            base = {"dataset": dataset, "data_root": args.data, "method": "gsl"}
            config = configure({**base, "steps": args.steps}, options)
            source = task_source(config, "train", CPU)
            learner = build_learner(config, build_module(config, source, CPU))
            found = {k: f"{v:.5g}" for k, v in cost(config, learner, source).items()}
            for row in finished:
                row.update(found)
            print(dataset, name, found, flush=True)
    with args.out.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def study(config: TrainConfig, every: int) -> list[dict[str, Any]]:
    """Trains one candidate; a row per ``every`` meta-steps, scores and costs in the last one."""
    began = time.process_time()
    source, test = (task_source(config, split, CPU) for split in ("train", "test"))
    learner = build_learner(config, build_module(config, source, CPU))
    constant = config.lr_schedule == "none"
    factor = schedule("constant" if constant else f"{config.lr_schedule}:{config.steps}")
    scheduler = LambdaLR(learner.optimizer, factor)
    rows = [{"step": 0, **fidelity(learner, source)}]
    for step in range(1, config.steps + 1):
        learner.step(source[step - 1])
        scheduler.step()
        if step % every == 0 or step == config.steps:
            rows.append({"step": step, **fidelity(learner, source)})
    metric, steps = metric_of(config), config.eval_inner_steps
    found = evaluate(learner, test, count=config.test_tasks, metric=metric, steps=steps).estimate
    rows[-1].update(score=found.mean, ci95=found.ci95, **cost(config, learner, source))
    rows[-1]["cpu_s"] = time.process_time() - began
    return rows


def fidelity(learner: MetaLearner, source: TaskSource) -> dict[str, float]:
    """Comparison with the exact meta-gradient: means over the held-out meta-batches."""
    found = [compare_with_exact(learner, source[FIRST_HELD_OUT + i]) for i in range(COMPARED)]
    return {
        name: torch.stack([getattr(one, name).mean() for one in found]).mean().item()
        for name in MEASURED
    }


def cost(config: TrainConfig, learner: MetaLearner, source: TaskSource) -> dict[str, float]:
    """Milliseconds of a step, the same relative to FOMAML, and peak memory in MB."""
    plain = {"metagrad": "first-order", "metagrad_options": {}, "aggregation": "mean"}
    fomaml = build_learner(
        configure({**config.to_dict(), **plain, "aggregation_options": {}}),
        copy.deepcopy(learner.module),
    )
    batch = source[FIRST_HELD_OUT]
    runs = {}  # each of as many steps as between two calibrations of R4
    for name, one in (("fomaml", fomaml), ("candidate", learner)):
        one.engine = "loop"
        runs[name] = lambda one=one: [one.step(batch) for _ in range(EVERY)]
    timings = interleaved(runs, seconds=0, min_rounds=ROUNDS)
    own = timings["candidate"].median
    return {
        "ms": 1e3 * own / EVERY,
        "time": own / timings["fomaml"].median,
        "peak_mb": peak_bytes(runs["candidate"]) / 1e6,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with omniglot/")
    parser.add_argument("--steps", type=int, default=1000, help="meta-steps")
    parser.add_argument(
        "--every",
        type=int,
        default=100,
        help="meta-steps between comparisons with the exact meta-gradient",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    both = ["omniglot", "sine"]
    parser.add_argument("--datasets", nargs="+", choices=both, default=both)
    parser.add_argument("--only", default="", help="run candidates whose name contains this")
    parser.add_argument(
        "--costs", action="store_true", help="train nothing; measure time and memory again"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gsl-study.csv"))
    parser.add_argument("--page", type=Path, default=Path("docs/gsl-study.md"))
    return parser.parse_args()


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(path: Path, rows: list[Mapping[str, Any]]) -> None:
    """Appends all rows of a candidate at once, so that an interrupted one leaves none."""
    texts = [{k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, [*KEYS, "step", *MEASURED, *FINAL], restval="")
        if file.tell() == 0:
            table.writeheader()
        table.writerows(texts)
    print(*(f"{k} {v}" for k, v in texts[-1].items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
