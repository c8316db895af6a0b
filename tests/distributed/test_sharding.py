"""Training with tasks sharded across ranks takes the steps of a single process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.distributed import Sharding
from fastmeta.distributed import _cost as cost
from fastmeta.learners import MetaLearner, build
from tests.distributed.ranks import run_ranks
from tests.helpers.problems import MODULES, tasks

TASKS = 5

CASES: dict[str, dict[str, Any]] = {
    "mean": {"method": "fomaml"},
    "gradient agreement": {"method": "gradient-agreement"},
    "gsl": {"method": "gsl", "metagrad_options": {"eta": 0.3}},
    "gsl r1": {"method": "gsl", "metagrad_options": {"variant": "R1", "eta": 0.3}},
    "gsl task weights": {"method": "fomaml", "aggregation": "gsl"},
    "pcgrad of gsl by layer": {
        "method": "gsl",
        "metagrad_options": {"variant": "R1", "eta": 0.3, "scope": "layer"},
        "aggregation": "pcgrad",
    },
    "gsl r2": {"method": "gsl", "metagrad_options": {"variant": "R2", "eta": 0.3}},
    "gsl r2p": {"method": "gsl", "metagrad_options": {"variant": "R2p", "eta": 30.0}},
    "gsl r4": {"method": "gsl", "metagrad_options": {"variant": "R4", "every": 3, "tasks": 4}},
    "upgrad": {"method": "maml", "aggregation": "upgrad"},
    "reptile": {"method": "reptile"},
    "learned rates": {"method": "meta-sgd"},
}
FIFTY = [
    *((name, "running batch norm", 50) for name in ("mean", "gradient agreement", "gsl")),
    *((name, "mlp", 50) for name in ("gsl r2", "gsl r2p", "gsl r4")),
]
# Ranks: the runs, as case, network and steps. Four ranks have up to two tasks, two up to three.
RUNS = {
    2: FIFTY + [(c, "mlp", 5) for c in CASES],
    4: FIFTY,
}


def trained(run: tuple[str, str, int], sharding: Sharding | None = None) -> list[Tensor]:
    """Parameters, buffers and learned rates after training."""
    name, network, steps = run
    torch.manual_seed(5)
    module, options = MODULES[network]().double(), dict(CASES[name])
    one = build(
        options.pop("method"),
        module,
        F.cross_entropy,
        inner_lr=0.1,
        inner_steps=2,
        sharding=sharding,
        **options,
    )
    for _ in range(steps):
        batch = tasks(TASKS)
        one.step(batch if sharding is None else sharding.part(batch))
    return [v.detach() for v in (*module.state_dict().values(), *one.adaptation.rates)]


@cache
def alone(run: tuple[str, str, int]) -> list[Tensor]:
    return trained(run)


def on_ranks(rank: int, size: int) -> list[list[Tensor]]:
    if size == 2:
        cost.MESSAGE = 0  # else such small gradients are gathered for any method
    return [trained(run, Sharding(TASKS)) for run in RUNS[size]]


@pytest.mark.parametrize("size", RUNS)
def test_ranks_agree_with_one_process(size: int, tmp_path: Path) -> None:
    ranks = run_ranks(size, on_ranks, tmp_path, size)
    for k, run in enumerate(RUNS[size]):
        for rank in ranks:
            for found, first, expected in zip(rank[k], ranks[0][k], alone(run), strict=True):
                assert torch.equal(found, first), run
                torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def refused(rank: int) -> list[str]:
    """Error messages for what cannot be sharded."""
    sharding = Sharding(TASKS)

    def shared() -> MetaLearner:
        module = MODULES["mlp"]()
        return build("gsl", module, F.cross_entropy, inner_lr=0.1, sharding=sharding)

    found = []
    for attempt in (
        lambda: Sharding(1),
        lambda: sharding.part(tasks(3)),
        lambda: shared().step(tasks(5)),
    ):
        with pytest.raises(ValueError, match=r"expected|Take its part") as caught:
            attempt()
        found.append(str(caught.value))
    return found


def test_what_cannot_be_sharded_is_refused(tmp_path: Path) -> None:
    for few, part, own in run_ranks(2, refused, tmp_path):
        assert "2 ranks cannot share 1 task; expected" in few
        assert "expected a whole meta-batch of 5 tasks, got 3" in part
        assert "of the 5 tasks, got 5. Take its part of a whole meta-batch" in own


def test_without_a_process_group() -> None:
    with pytest.raises(RuntimeError, match=r"torch\.distributed is not initialised"):
        Sharding(4)
