"""Tables of the GPU run: interleaved timings of contenders, and the measured hardware limits.

    python -m benchmarks.gpu.tables --out tables.json

A row has the median and the quartiles in milliseconds. ``of_copy`` is the fraction of the measured
copy bandwidth that a contender reaches, counting the minimum traffic: bytes that must be read and
written once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks._common.batches import image_batch
from benchmarks._common.compositions import (
    compiled,
    head_by_autograd,
    naive,
    parameter_shapes,
    tuned,
)
from benchmarks._common.timing import Timing
from benchmarks.gpu.clock import Run, launches, replayed, time_all
from fastmeta import TaskBatch, ops
from fastmeta.learners import build
from fastmeta.models import MLP, Conv4

Row = dict[str, Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=2.0, help="time per group of contenders")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the command")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    bench = Bench(args.device, args.seconds, args.small)
    tables = {
        table.__name__: table(bench)
        for table in (ceilings, similarity_weight_combine, gram, pack, head_similarity, meta_step)
    }
    args.out.write_text(json.dumps(tables, indent=1) + "\n")


class Bench:
    """Device and time limit of the measurements, and the copy bandwidth once measured."""

    def __init__(self, device: str, seconds: float, small: bool) -> None:
        self.device, self.seconds, self.small = device, seconds, small
        self.copy = float("nan")  # bytes per second

    def rows(
        self, contenders: Mapping[str, Run], *, traffic: float | None = None, **common: Any
    ) -> list[Row]:
        """One row per contender, and on a GPU another one per contender as a CUDA graph.

        Args:
            contenders: by name; the first is the baseline of ``speedup``.
            traffic: minimum number of bytes that every contender has to move.
            **common: values of further columns, the same in all rows.
        """
        runs = dict(contenders)
        if self.device == "cuda":
            runs |= {f"{name}, graph": replayed(run) for name, run in contenders.items()}
        timings = time_all(runs, self.device, self.seconds)
        base = timings[next(iter(timings))]
        return [
            {
                **common,
                "contender": name,
                **_times(timings[name], base),
                **({"of_copy": traffic / self.copy / timings[name].median} if traffic else {}),
                "launches": launches(run, self.device) if name in contenders else None,
            }
            for name, run in runs.items()
        ]

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Normally distributed numbers on the device."""
        return torch.randn(*shape, device=self.device).to(dtype)


def _times(timing: Timing, base: Timing) -> Row:
    return {
        "ms": 1e3 * timing.median,
        "low": 1e3 * timing.low,
        "high": 1e3 * timing.high,
        "speedup": base.median / timing.median,
    }


def ceilings(bench: Bench) -> list[Row]:
    """Copying and reading 1 GB, and a matrix product, of random data."""
    count, side = (10**5, 256) if bench.small else (2**28, 8192)
    source = bench.randn(count)
    target = torch.empty_like(source)
    products = {name: bench.randn(side, side, dtype=dtype) for name, dtype in DTYPES.items()}
    runs: dict[str, Run] = {
        "copy": lambda: target.copy_(source),
        "read": source.sum,
        **{f"matmul {name}": lambda m=m: m @ m for name, m in products.items()},
    }
    timings = time_all(runs, bench.device, bench.seconds)
    bench.copy = 2 * source.nbytes / timings["copy"].median
    amounts = {"copy": 2 * source.nbytes, "read": source.nbytes}
    return [
        {
            "contender": name,
            "ms": 1e3 * timing.median,
            "GB/s" if name in amounts else "TFLOP/s": amounts[name] / timing.median / 1e9
            if name in amounts
            else 2 * side**3 / timing.median / 1e12,
        }
        for name, timing in timings.items()
    ]


def similarity_weight_combine(bench: Bench) -> list[Row]:
    """Cosine with the mean gradient as task weights; goals: 85 % of copy bandwidth, 20x naive."""
    sizes = [(4, 2000)] if bench.small else [(16, 8_000_000), (32, 113_000), (4, 113_000)]
    found = []
    for tasks, columns in sizes:
        for name, dtype in DTYPES.items():
            grads = bench.randn(tasks, columns, dtype=dtype)
            out = [
                torch.empty(s, dtype=dtype, device=bench.device) for s in parameter_shapes(columns)
            ]
            contenders: dict[str, Run] = {
                "torch, naive": lambda grads=grads, out=out: naive(grads, out),
                "torch, three matrix passes": lambda grads=grads, out=out: tuned(grads, out),
                "fastmeta, cosine": lambda grads=grads, out=out: compiled(grads, out),
                "fastmeta, agreement": lambda grads=grads, out=out: ops.combine_(
                    out, grads, ops.agreement_weights(ops.mean_similarity(grads))
                ),
            }
            traffic = 2 * grads.nbytes + grads.nbytes / tasks
            found += bench.rows(
                contenders, traffic=traffic, tasks=tasks, columns=columns, dtype=name
            )
    return found


def gram(bench: Bench) -> list[Row]:
    """Gram matrix of the task gradients against a matrix product."""
    columns = 2000 if bench.small else 1_000_000
    found = []
    for tasks in (8, 16, 32, 64):
        grads = bench.randn(tasks, columns)
        runs: dict[str, Run] = {
            "torch, g @ g.T": lambda grads=grads: grads @ grads.T,
            "fastmeta": lambda grads=grads: ops.gram(grads),
        }
        found += bench.rows(runs, traffic=grads.nbytes, tasks=tasks, columns=columns)
    return found


def pack(bench: Bench) -> list[Row]:
    """Packing per-task lists of gradients, as returned by autograd, into one matrix."""
    found = []
    for tasks, columns in [(4, 2000)] if bench.small else [(32, 113_000), (16, 8_000_000)]:
        shapes = parameter_shapes(columns)
        grads = [bench.randn(*s) for _ in range(tasks) for s in shapes]
        flat, each = torch.empty(tasks, columns, device=bench.device), len(shapes)

        def with_torch(grads=grads, tasks=tasks, each=each) -> torch.Tensor:
            parts = [grads[i * each : (i + 1) * each] for i in range(tasks)]
            return torch.stack([torch.cat([g.reshape(-1) for g in part]) for part in parts])

        runs: dict[str, Run] = {
            "torch, cat and stack": with_torch,
            "fastmeta": lambda flat=flat, grads=grads: ops.pack_(flat, grads),
        }
        found += bench.rows(runs, traffic=2 * flat.nbytes, tasks=tasks, columns=columns)
    return found


def head_similarity(bench: Bench) -> list[Row]:
    """The similarity loss of a linear head in closed form against autograd of autograd."""
    found = []
    sizes = [(2, 5, 5, 8)] if bench.small else [(32, 5, 5, 64), (32, 25, 5, 800), (32, 100, 20, 64)]
    for tasks, n, classes, width in sizes:
        x, v = bench.randn(tasks, n, width), bench.randn(tasks, classes, width)
        weight, bias = bench.randn(tasks, classes, width), bench.randn(tasks, classes)
        y = torch.randint(classes, (tasks, n), device=bench.device)
        args = (x, x @ weight.mT, y, weight, v, bias)
        runs: dict[str, Run] = {
            "torch, autograd": lambda args=args: head_by_autograd(*args),
            "fastmeta": lambda args=args: ops.head_similarity(*args, loss="cross_entropy"),
        }
        found += bench.rows(runs, tasks=tasks, n=n, classes=classes, width=width)
    return found


def meta_step(bench: Bench) -> list[Row]:
    """Whole meta-steps: the other engines against the loop engine; `sequence` replays a graph."""
    found = []
    for tasks in (4,) if bench.small else (4, 32):
        conv = image_batch(tasks, queries=5).to(bench.device)
        sine = TaskBatch(*(bench.randn(tasks, 10, 1) for _ in range(4)))
        for method in ("maml", "fomaml", "gsl"):
            cases: dict[str, tuple[Callable[[], nn.Module], TaskBatch, str]] = {
                "Omniglot Conv4-64, strided": (
                    partial(Conv4, 1, 28, 5, downsample="stride"),
                    *(conv, "sequence"),
                ),
                "Omniglot Conv4-64, pooled": (partial(Conv4, 1, 28, 5), conv, "sequence"),
                "sine MLP 40-40": (partial(MLP, 1, 1, (40, 40)), sine, "mlp"),
            }
            for name, (make, batch, compiled_engine) in cases.items():
                runs = {
                    engine: _step(method, make().to(bench.device), batch, engine)
                    for engine in ("loop", "batched", compiled_engine)
                }
                timings = time_all(runs, bench.device, bench.seconds)
                found += [
                    {"network": name, "tasks": tasks, "method": method, "contender": engine}
                    | _times(timing, timings["loop"])
                    | {"launches": launches(runs[engine], bench.device)}
                    for engine, timing in timings.items()
                ]
    return found


def _step(method: str, module: nn.Module, batch: TaskBatch, engine: str) -> Run:
    loss = F.mse_loss if batch.support_y.is_floating_point() else F.cross_entropy
    learner = build(method, module, loss, inner_lr=0.05, engine=engine)  # type: ignore[arg-type]
    return lambda: learner.step(batch)


if __name__ == "__main__":
    main()
