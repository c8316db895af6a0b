"""The engine ``"compiled"`` against the loop and the MLP engine, with its compile times.

Guards the goals of one thread: at least twice as fast as the loop engine on a transformer of 12
layers (16 tokens of width 64, 4 tasks, one inner step), at most twice the time of the hand-written
step on the sine MLP (4 tasks, five inner steps). Compile times are printed: with an empty cache of
torch on disk, and from that cache. Run with ``pytest benchmarks/ops/test_compiled.py -s``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks._common.batches import image_batch
from benchmarks._common.timing import interleaved, report
from benchmarks.transformers.cases import Case
from benchmarks.transformers.networks import blocks
from fastmeta import MAML, TaskBatch
from fastmeta.data import SineTasks
from fastmeta.models import MLP, Conv4

TASKS = 4
TRANSFORMER = Case("blocks", "blocks", tokens=16, width=64, layers=12)


class Encoder(nn.Module):
    """Blocks without a mask, and a linear head on the mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = blocks(TRANSFORMER, causal=False)
        self.head = nn.Linear(TRANSFORMER.width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(n, 5)`` of vectors ``(n, tokens, width)``."""
        return self.head(self.blocks(x).mean(1))


def sine() -> tuple[nn.Module, Any, TaskBatch, int]:
    return MLP(1, 1), F.mse_loss, SineTasks(TASKS, shots=10, queries=10, seed=0)[0], 5


def transformer() -> tuple[nn.Module, Any, TaskBatch, int]:
    y = torch.arange(5).repeat(2).expand(TASKS, -1).contiguous()
    x, query_x = torch.randn(2, TASKS, 10, TRANSFORMER.tokens, TRANSFORMER.width)
    return Encoder(), F.cross_entropy, TaskBatch(x, y, query_x, y), 1


def conv4() -> tuple[nn.Module, Any, TaskBatch, int]:
    batch = image_batch(TASKS, queries=15)
    return Conv4(1, 28, 5, downsample="stride"), F.cross_entropy, batch, 1


CASES = {"sine MLP": sine, "12-layer transformer": transformer, "strided Conv4-64": conv4}


def cpu_time(run: Callable[[], object]) -> float:
    """CPU seconds of one call on one thread, whatever else runs on the cores."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def measure(case: str, seconds: float) -> dict[str, Any]:
    """Compile seconds, number of operations, and (if ``seconds``) times of the engines."""
    torch.manual_seed(0)
    module, loss, batch, steps = CASES[case]()
    engines = ["loop", *(["mlp"] if case == "sine MLP" else []), "compiled"]
    learners = {
        engine: MAML(module, loss, inner_lr=0.01, inner_steps=steps, engine=engine)
        for engine in engines
    }
    found = {engine: learner.meta_gradient(batch)[0] for engine, learner in learners.items()}
    for gradient in found.values():
        assert (gradient - found["loop"]).norm() <= 1e-4 * found["loop"].norm()
    result: dict[str, Any] = dict(vars(learners["compiled"].compilations[0]))
    if seconds:
        runs = {e: lambda own=own: own.meta_gradient(batch) for e, own in learners.items()}
        timings = interleaved(runs, seconds=seconds, clock=cpu_time)
        title = f"{case}, {TASKS} tasks, {steps} inner steps, CPU time, one thread"
        report(title, timings, "compiled")
        result["times"] = {engine: timing.median for engine, timing in timings.items()}
    return result


@pytest.mark.parametrize("case", CASES)
def test_engines(case: str, tmp_path: Path) -> None:
    """In processes of their own: the first one finds an empty cache, the second one its results."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    results = []
    for seconds in (0, 8):
        out = tmp_path / f"{seconds}.json"
        command = [sys.executable, "-m", "benchmarks.ops.test_compiled", case, str(seconds), out]
        subprocess.run(command, env=env, check=True)
        results.append(json.loads(out.read_text()))
    cold, cached = results
    print(
        f"{cold['operations']} operations, {cold['distinct']} distinct; compiled in "
        f"{cold['seconds']:.0f} s, {cached['seconds']:.0f} s from the cache on disk"
    )
    times = cached["times"]
    if case == "12-layer transformer":
        assert times["loop"] > 2 * times["compiled"]
    if case == "sine MLP":
        assert times["compiled"] < 2 * times["mlp"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = measure(sys.argv[1], float(sys.argv[2]))
    Path(sys.argv[3]).write_text(json.dumps(found))
