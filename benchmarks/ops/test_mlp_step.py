"""The compiled MLP engine against the loop engine, and the time of the compiled op alone.

Guards the goals on two cores for the sine network 1-40-40-1, 4 tasks per meta-batch, five inner
steps on ten points: the op below 0.15 ms with second derivatives and 0.06 ms without, and the
engine more than 40 and 30 times as fast as the loop; mixed order of the head is between both. Run
with ``pytest benchmarks/ops/test_mlp_step.py -s``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks._common.timing import interleaved, report
from fastmeta import FOMAML, MAML, TaskBatch, ops
from fastmeta.data import SineTasks
from fastmeta.models import MLP

ORDERS = {"second order": MAML, "first order": FOMAML}
HEAD = "mlp: the op, head only"
# Maximum milliseconds of the op alone, and minimum speedup over the loop engine.
GOALS = {"second order": (0.15, 40.0), "first order": (0.06, 30.0)}


def contenders(order: str, module: nn.Module, loss: Any, batch: TaskBatch) -> dict[str, Any]:
    """Both engines and the op alone, five inner steps; checks that their meta-gradients agree.

    Also the op in mixed order, differentiating the inner gradients of the head.
    """
    learners = {
        engine: ORDERS[order](module, loss, inner_lr=0.01, inner_steps=5, engine=engine)
        for engine in ("loop", "mlp")
    }
    expected, found = (learner.meta_gradient(batch)[0] for learner in learners.values())
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    params = [p.detach() for p in module.parameters()]
    parts = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
    body = len(params) // 2 - 1
    options: dict[str, Any] = {
        "activations": ["relu"] * body,
        "loss": "mse" if loss is F.mse_loss else "cross_entropy",
        "lr": 0.01,
        "steps": 5,
    }
    own, head = [[order == "second order"] * (body + 1)], [[False] * body + [True]]
    return {
        "loop: learner.step": lambda: learners["loop"].step(batch),
        "mlp: learner.step": lambda: learners["mlp"].step(batch),
        "loop: meta_gradient": lambda: learners["loop"].meta_gradient(batch),
        "mlp: meta_gradient": lambda: learners["mlp"].meta_gradient(batch),
        "mlp: the op": lambda: ops.mlp_step(params, *parts, **options, differentiated=own),
        HEAD: lambda: ops.mlp_step(params, *parts, **options, differentiated=head),
    }


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tasks", [4, 32])
def test_sine(benchmark, order: str, tasks: int) -> None:
    batch = SineTasks(tasks, shots=10, queries=10, seed=0)[0]
    runs = contenders(order, MLP(1, 1), F.mse_loss, batch)
    timings = interleaved(runs, seconds=8)
    speedup = timings["loop: meta_gradient"].median / timings["mlp: meta_gradient"].median
    title = f"sine MLP 1-40-40-1, {order}, {tasks} tasks, 5 inner steps, {threads()}"
    report(title, timings, "mlp: the op", f"engine mlp: {speedup:.0f}x the loop")
    benchmark.extra_info.update(speedup=speedup)
    benchmark.pedantic(runs["mlp: the op"], rounds=9, warmup_rounds=1)
    if tasks == 4:
        max_ms, min_speedup = GOALS[order]
        assert timings["mlp: the op"].median < max_ms * 1e-3
        assert speedup > min_speedup
    if order == "second order":
        assert timings[HEAD].median < timings["mlp: the op"].median


@pytest.mark.parametrize("order", ORDERS)
def test_images(benchmark, order: str) -> None:
    """A wide network, where the time is that of the matrix products, against MKL."""
    module = MLP(784, 5, (256, 128, 64))
    y = torch.arange(5).repeat(15).expand(4, -1).contiguous()
    batch = TaskBatch(torch.randn(4, 25, 784), y[:, :25], torch.randn(4, 75, 784), y)
    runs = contenders(order, module, F.cross_entropy, batch)
    timings = interleaved(runs, seconds=8)
    speedup = timings["loop: meta_gradient"].median / timings["mlp: meta_gradient"].median
    title = f"MLP 784-256-128-64-5, {order}, 5-way 5-shot, 4 tasks, 5 inner steps, {threads()}"
    report(title, timings, "mlp: the op", f"engine mlp: {speedup:.2f}x the loop")
    benchmark.pedantic(runs["mlp: the op"], rounds=9, warmup_rounds=1)
    assert speedup > 1  # otherwise engine="auto" must not select it


def threads() -> str:
    return f"{torch.get_num_threads()} threads"
