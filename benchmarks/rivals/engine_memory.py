"""Peak memory of a first meta-gradient: the loop engine against the sequence engine.

    python -m benchmarks.rivals.engine_memory --out benchmarks/results/engine-memory-cpu.txt

Maximum memory allocated by torch, what an engine keeps for later meta-gradients included. The
sequence engine takes one task per thread at a time, the loop engine one task over all threads.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.rivals.cases import NETWORKS, Case, batch, build
from fastmeta import FOMAML, MAML, TaskBatch
from fastmeta.tuning.memory import peak_bytes

IMAGES = (
    "Omniglot Conv4-64, 5-way 1-shot, 4 tasks",
    "Omniglot Conv4-64 pooled, 5-way 1-shot, 4 tasks",
    "mini-ImageNet Conv4-32, 5-way 1-shot, 4 tasks",
)
ENGINES = ("loop", "sequence")


def peak(case: Case, engine: str) -> float:
    """Megabytes."""
    torch.manual_seed(0)
    method = MAML if case.order == 2 else FOMAML
    learner = method(
        build(case), case.loss, inner_lr=case.lr, inner_steps=case.steps, engine=engine
    )
    run = partial(learner.meta_gradient, TaskBatch(*batch(case)))
    return peak_bytes(run, torch.device("cpu")) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="text file to write")
    args = parser.parse_args()
    threads = (1, 2)
    lines = [
        f"# torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, peak in MB",
        f"{'':<72}" + "".join(f"{f'threads: {t}':>18}" for t in threads),
        f"{'':<72}" + "".join(f"{name:>9}" for name in ENGINES * len(threads)),
    ]
    print("\n".join(lines), flush=True)
    for network in NETWORKS:
        if network.name not in IMAGES:
            continue
        for steps, order in ((1, 1), (5, 1), (1, 2), (5, 2)):
            case = replace(network, steps=steps, order=order)
            lines.append(f"{case.title:<72}")
            for count in threads:
                torch.set_num_threads(count)
                lines[-1] += "".join(f"{peak(case, name):>9.1f}" for name in ENGINES)
            print(lines[-1], flush=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
