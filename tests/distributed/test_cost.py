"""Communication follows the cost model, by its cheapest plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from fastmeta.aggregation import GradientAgreement, GslWeights, Mean, UPGrad
from fastmeta.distributed import ShardedTaskGradients, Sharding
from fastmeta.distributed import _cost as cost
from fastmeta.gradients import TaskGradients
from tests.distributed.ranks import run_ranks

RANKS = 3
# Aggregation, tasks, parameters and the best plan for them.
CASES = [
    (Mean, 6, 300, "sums"),
    (GradientAgreement, 6, 300, "rows"),
    (GradientAgreement, 3, 300_000, "columns"),
    (GradientAgreement, 9, 300_000, "sums"),
    (GslWeights, 6, 300, "rows"),
    (GslWeights, 6, 300_000, "columns"),
    (GslWeights, 15, 300_000, "sums"),
    (UPGrad, 6, 300, "rows"),
    (UPGrad, 15, 300_000, "columns"),
]


def plans(aggregation: type, *sizes: int) -> cost.Plans:
    if aggregation is Mean:
        return cost.mean(*sizes)
    if aggregation is UPGrad:
        return cost.gram(*sizes)
    return cost.similarity(*sizes, support=aggregation is GradientAgreement)


def counted(function: Callable[..., Any], of: Callable[..., cost.Cost], sent: list[cost.Cost]):
    def call(*args: Any, **kwargs: Any) -> Any:
        sent.append(of(*args))
        return function(*args, **kwargs)

    return call


def sent(rank: int) -> list[tuple[float, float]]:
    """Messages and numbers that a rank sends to combine the task gradients of each case."""
    log: list[cost.Cost] = []
    counts = {
        "all_reduce": lambda t, *_: cost.all_reduce(t.numel(), RANKS),
        "all_gather": lambda _, own: cost.all_gather(own.numel(), RANKS),
        "all_to_all_single": lambda _, own, *__: cost.all_to_all(own.numel(), RANKS),
        "broadcast": lambda t, *_: cost.broadcast(t.numel(), RANKS),
    }
    for name, of in counts.items():
        setattr(dist, name, counted(getattr(dist, name), of, log))
    found = []
    for aggregation, tasks, params, _ in CASES:
        log.clear()
        query, inner = torch.randn(2, tasks // RANKS, params)
        rows = ShardedTaskGradients(TaskGradients(query, inner), Sharding(tasks))
        rows.combine(aggregation().weights(rows))
        total = sum(log, cost.Cost())
        found.append((total.messages, total.numbers))
    return found


def test_ranks_send_what_the_cheapest_plan_says(tmp_path: Path) -> None:
    for found in run_ranks(RANKS, sent, tmp_path):
        for (aggregation, tasks, params, plan), (messages, numbers) in zip(
            CASES, found, strict=True
        ):
            known = plans(aggregation, tasks, params, RANKS)
            assert cost.cheapest(known) == plan, (aggregation, tasks, params, known)
            assert messages == known[plan].messages, (aggregation, plan)
            assert numbers == pytest.approx(known[plan].numbers), (aggregation, plan)


@given(own=st.integers(1, 16), ranks=st.integers(2, 512))
def test_large_gradients_minimize_the_numbers_sent(own: int, ranks: int) -> None:
    sizes = own * ranks, 10**11, ranks
    assert cost.cheapest(cost.gram(*sizes)) == "columns"
    for inner, few in ((False, 3), (True, 2)):
        plan = cost.cheapest(cost.similarity(*sizes, inner))
        assert plan == ("columns" if own <= few else "sums"), inner


@given(own=st.integers(1, 16), ranks=st.integers(2, 512))
def test_small_gradients_minimize_the_messages(own: int, ranks: int) -> None:
    sizes = own * ranks, 1, ranks
    assert cost.cheapest(cost.similarity(*sizes, False)) == "rows"


def weighted_by_local_gradients(rank: int) -> str:
    rows = ShardedTaskGradients(TaskGradients(torch.randn(2, 5)), Sharding(4))
    with pytest.raises(ValueError, match="expected one weight") as caught:
        rows.combine(rows.meta().norm(dim=1))
    return str(caught.value)


def test_weights_of_local_tasks_only_are_refused(tmp_path: Path) -> None:
    for message in run_ranks(2, weighted_by_local_gradients, tmp_path):
        assert "each of the 4 tasks of all ranks, got shape (2,)" in message
        assert "tasks, gram() and mean_similarity() only" in message
