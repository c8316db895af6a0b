"""Every aggregation of task gradients that are sharded across ranks."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastmeta.aggregation import AGGREGATIONS
from fastmeta.distributed import ShardedTaskGradients, Sharding
from fastmeta.distributed import _cost as cost
from fastmeta.gradients import TaskGradients
from tests.distributed.ranks import run_ranks

# Tasks and parameters: fewer parameters than ranks, few and many tasks per rank.
SIZES = [(3, 1), (4, 7), (11, 101)]
# Cost of a message: zero, so that gradients are never gathered, or more than everything else.
MESSAGES = (0.0, cost.MESSAGE)
CLOSE = {torch.float64: (1e-9, 1e-10), torch.float32: (2e-3, 1e-4)}
CASES = list(product(MESSAGES, SIZES, CLOSE))


def combined(rank: int) -> list[list[dict[str, Tensor]]]:
    """Combinations in one process and on the ranks, for each cost, size and dtype."""
    found = []
    for message, (count, params), dtype in CASES:
        cost.MESSAGE = message
        torch.manual_seed(2)
        query, inner = torch.randn(2, count, params, dtype=dtype) + 0.3
        coef, losses = torch.rand(count, 1, 2, dtype=dtype), torch.rand(count, dtype=dtype)
        sharding = Sharding(count)
        own = sharding.own

        def whole(parts=(query, inner, coef), losses=losses) -> TaskGradients:
            return TaskGradients(*parts, losses=losses)

        def shared(
            parts=(query[own], inner[own], coef[own]), losses=losses[own], by=sharding
        ) -> TaskGradients:
            return ShardedTaskGradients(TaskGradients(*parts, losses=losses), by)

        found.append([_each(make) for make in (whole, shared)])
    return found


def _each(make) -> dict[str, Tensor]:
    found = {}
    for name, aggregation in AGGREGATIONS.items():
        torch.manual_seed(1)  # of PCGrad's orders
        rows = make()
        found[name] = rows.combine(aggregation().weights(rows))
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_every_aggregation(size: int, tmp_path: Path) -> None:
    ranks = run_ranks(size, combined, tmp_path)
    for k, (_, _, dtype) in enumerate(CASES):
        rtol, atol = CLOSE[dtype]
        for rank in ranks:
            expected, found = rank[k]
            for name in AGGREGATIONS:
                assert torch.equal(found[name], ranks[0][k][1][name]), name
                torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=atol)
