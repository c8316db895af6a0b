"""Memories and buffers of tasks are the same on all ranks, and those of a single process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.data import PrioritizedTasks, SineTasks
from fastmeta.distributed import ShardedSource, Sharding
from fastmeta.learners import build
from fastmeta.models import MLP
from tests.distributed.ranks import run_ranks

TASKS = 5
RUNS: dict[str, dict[str, Any]] = {
    "robust-maml": {},
    "moml": {"version": 2, "move_all": True},
    "local-moml": {"local_steps": 2, "local_lr": 0.01},
}


def trained(method: str, sharding: Sharding | None = None) -> list[Tensor]:
    """Parameters, rates and memories after training, and the buffer of tasks."""
    torch.manual_seed(1)
    tasks: Any = SineTasks(TASKS, 4, 4, seed=2, grid=(2, 4))
    tasks = PrioritizedTasks(tasks, 0.4, "hard", slots=8)
    if sharding is not None:
        tasks = ShardedSource(tasks, sharding)
    learner = build(
        method,
        MLP(1, 1, (6,)).double(),
        F.mse_loss,
        inner_lr=0.05,
        metagrad_options=RUNS[method],
        sharding=sharding,
    )
    for i in range(6):
        batch = tasks[i].map(lambda t: t.double() if t.is_floating_point() else t)
        tasks.feedback(i, learner.step(batch).query_loss)
    state = {**learner.state_dict()["metagrad"], **tasks.state_dict()}
    kept = [torch.as_tensor(state[name]) for name in sorted(state)]
    return [p.detach() for p in (*learner.module.parameters(), *learner.adaptation.rates)] + kept


def on_ranks(rank: int) -> list[list[Tensor]]:
    return [trained(method, Sharding(TASKS)) for method in RUNS]


def test_ranks_agree_with_one_process(tmp_path: Path) -> None:
    ranks = run_ranks(2, on_ranks, tmp_path)
    for k, method in enumerate(RUNS):
        expected = trained(method)
        for rank in ranks:
            for found, first, alone in zip(rank[k], ranks[0][k], expected, strict=True):
                assert torch.equal(found, first), method
                torch.testing.assert_close(found, alone, rtol=1e-7, atol=1e-9)
