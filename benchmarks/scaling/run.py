"""The cost model of ``fastmeta.distributed`` against measurements on a few gloo processes.

    python -m benchmarks.scaling

Fits the time per message, per number and per product to bare collectives on 2 and 4 processes,
then times meta-steps with and without communication, interleaved, and writes measurements,
predictions for them, and predictions for up to 1,000 ranks to
``benchmarks/results/scaling-gloo.csv`` and ``.md``. Takes a few minutes. All contenders under one
heading are measured in the same run.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import socket
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from benchmarks._common.timing import wall
from benchmarks.scaling.page import TASKS, page
from fastmeta import ops
from fastmeta.data import SineTasks
from fastmeta.distributed import Sharding
from fastmeta.learners import build
from fastmeta.models import MLP

Run = Callable[[], object]
Times = dict[str, list[float]]

OUT = Path(__file__).resolve().parents[1] / "results"
RANKS = (2, 4)
HIDDEN = {"MLP 40-40": (40, 40), "MLP 512-512": (512, 512)}
METHODS: dict[str, dict[str, str]] = {
    "mean": {"method": "fomaml"},
    "GSL": {"method": "gsl"},
    "Gradient Agreement": {"method": "gradient-agreement"},
    "IMTL-G": {"method": "fomaml", "aggregation": "imtl-g"},
}
NUMBERS = (1, 2**10, 2**14, 2**18, 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.scaling", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rounds", type=int, default=25, help="per group of contenders")
    args = parser.parse_args()
    rows = [row for size in RANKS for row in _on_ranks(size, args.rounds)]
    facts = (
        f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, gloo over loopback, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores shared with other work (load "
        f"{os.getloadavg()[0]:.1f}), one thread per process, {TASKS} tasks per rank."
    )
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "scaling-gloo.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = page(facts, rows)
    (args.out / "scaling-gloo.md").write_text(text)
    print(text)


def _on_ranks(size: int, rounds: int) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        rows = manager.list()
        mp.spawn(_rank, (size, port, rounds, rows), nprocs=size)
        return list(rows)


def _rank(rank: int, size: int, port: int, rounds: int, rows: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    found = [*_links(size, rounds)]
    for network in HIDDEN:
        found += _steps(network, size, rounds)
    if size == RANKS[0]:
        found += _overlap(size, rounds)
    if rank == 0:
        rows.extend(found)
    dist.barrier()
    dist.destroy_process_group()


def _interleaved(contenders: Mapping[str, Run], rounds: int) -> Times:
    """Seconds of each contender per round: all ranks start together, the slowest counts."""
    times: Times = {name: [] for name in contenders}
    for k in range(rounds + 2):
        for name, run in contenders.items():
            dist.barrier()
            seconds = torch.tensor(wall(run))
            dist.all_reduce(seconds, dist.ReduceOp.MAX)
            if k > 1:  # the first two warm up
                times[name].append(seconds.item())
    return times


def _rows(kind: str, network: str, params: int, size: int, times: Times) -> list[dict[str, Any]]:
    def row(name: str, seconds: list[float]) -> dict[str, Any]:
        low, median, high = (f"{q:.6g}" for q in statistics.quantiles(seconds, n=4))
        what = {"kind": kind, "network": network, "name": name, "ranks": size, "numbers": params}
        return {**what, "seconds": median, "low": low, "high": high}

    return [row(name, seconds) for name, seconds in times.items()]


def _links(size: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for numbers in NUMBERS:
        own = torch.randn(max(numbers, size))
        parts = [torch.empty_like(own) for _ in range(size)]
        whole = own[: len(own) // size * size]
        rows_of = torch.randn(16, max(1, numbers // 16))
        contenders: dict[str, Run] = {
            "all_reduce": lambda own=own: dist.all_reduce(own.clone()),
            "all_gather": lambda own=own, parts=parts: dist.all_gather(parts, own),
            "all_to_all": lambda own=whole: dist.all_to_all_single(torch.empty_like(own), own),
            "broadcast": lambda own=own: dist.broadcast(own, 0),
            "gram": lambda rows_of=rows_of: ops.gram(rows_of),
        }
        rows += _rows("link", "", len(own), size, _interleaved(contenders, rounds))
    return rows


def _steps(network: str, size: int, rounds: int) -> list[dict[str, Any]]:
    """A step without communication, followed by a barrier, and a step with communication."""
    rows, wait = [], torch.zeros(1)
    for name, options in METHODS.items():
        sharding = Sharding(TASKS * size)
        own = SineTasks(TASKS * size, 10, 10).part(0, sharding.own.start, sharding.own.stop)
        contenders, params = {}, 0
        for what, shared in (("alone", None), ("sharded", sharding)):
            torch.manual_seed(0)
            module = MLP(1, 1, hidden=HIDDEN[network])
            params = sum(p.numel() for p in module.parameters())
            learner = build(
                options["method"],
                module,
                F.mse_loss,
                inner_lr=0.01,
                aggregation=options.get("aggregation"),
                sharding=shared,
            )
            contenders[f"{name}, {what}"] = partial(learner.step, own)
        alone = contenders[f"{name}, alone"]
        contenders[f"{name}, alone"] = lambda alone=alone: (alone(), dist.all_reduce(wait))
        rows += _rows("step", network, params, size, _interleaved(contenders, rounds))
    return rows


def _overlap(size: int, rounds: int) -> list[dict[str, Any]]:
    """Exchanging each task gradient during the next task; summing each part during the next one."""
    params = 2**18
    own, weights = torch.randn(TASKS, params), torch.full((TASKS,), 1 / TASKS)
    got = torch.empty(TASKS, params)
    square = torch.randn(256, 256)

    def task() -> None:
        for _ in range(8):
            square @ square

    def compute() -> None:
        for _ in own:
            task()

    def exchange() -> None:
        dist.all_to_all_single(got, own)

    def sequential() -> None:
        compute()
        exchange()

    def overlapped() -> None:
        works = []
        for sent, received in zip(own, got, strict=True):
            task()
            works.append(dist.all_to_all_single(received, sent, async_op=True))
        for work in works:
            work.wait()

    def mean() -> None:
        dist.all_reduce(ops.combine(own, weights))

    def mean_in_parts() -> None:
        works, parts = [], []
        for part in own.split(params // 4, 1):
            parts.append(ops.combine(part.contiguous(), weights))
            works.append(dist.all_reduce(parts[-1], async_op=True))
        for work in works:
            work.wait()
        torch.cat(parts)

    exchanges: dict[str, Run] = {
        "tasks alone": compute,
        "exchange alone": exchange,
        "one after the other": sequential,
        "overlapped": overlapped,
    }
    means: dict[str, Run] = {"mean": mean, "mean in parts, overlapped": mean_in_parts}
    return [
        row
        for group in (exchanges, means)
        for row in _rows("overlap", "", params, size, _interleaved(group, rounds))
    ]
