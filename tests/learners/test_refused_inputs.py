"""Inputs that every engine refuses alike, with the same message."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import MAML, TaskBatch
from fastmeta.adaptation import SGD, run_inner_loop

ENGINES = ["loop", "batched", "mlp"]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def learner(engine: str = "loop", loss=F.cross_entropy) -> MAML:
    return MAML(network(), loss, inner_lr=0.1, engine=engine)


def sets(examples: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, examples, 4), torch.zeros(2, examples, dtype=torch.long)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("support", "query", "name"), [(0, 3, "support_x"), (3, 0, "query_x")])
@pytest.mark.parametrize("call", ["step", "predict"])
def test_empty_sets(engine: str, support: int, query: int, name: str, call: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must hold at least one example per task"):
        getattr(learner(engine), call)(TaskBatch(*sets(support), *sets(query)))


def test_adaptation_to_an_empty_set() -> None:
    with pytest.raises(ValueError, match="must hold at least one example"):
        learner().adapt(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (
            lambda out, y: F.cross_entropy(out, y, reduction="none"),
            ValueError,
            r"the loss must be a scalar, got shape \(3,\) for each task",
        ),
        (lambda out, y: F.cross_entropy(out, y)[None], ValueError, r"scalar, got shape \(1,\)"),
        (lambda out, y: 0.5, TypeError, "the loss must be a scalar tensor, got float"),
        (lambda out, y: None, TypeError, "the loss must be a scalar tensor, got NoneType"),
    ],
)
def test_losses_that_are_no_scalar_tensors(engine: str, loss, error, message: str) -> None:
    batch = TaskBatch(*sets(3), *sets(3))
    with pytest.raises(error, match=message):
        learner(engine, loss).step(batch)
    with pytest.raises(error, match=message):
        learner(engine, loss).predict(batch)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", [-1, 1.5, True, "2"])
def test_numbers_of_inner_steps(engine: str, steps) -> None:
    message = "steps must be an integer of at least 0, got"
    batch = TaskBatch(*sets(3), *sets(3))
    with pytest.raises(ValueError, match=message):
        learner(engine).predict(batch, steps)
    with pytest.raises(ValueError, match=message):
        learner(engine).adapt(batch.support_x[0], batch.support_y[0], steps)
    with pytest.raises(ValueError, match=message):
        run_inner_loop(SGD(0.1), lambda p: p[0].sum(), [torch.ones(2)], steps=steps)
    with pytest.raises(ValueError, match=message):
        MAML(network(), F.cross_entropy, inner_lr=0.1, inner_steps=steps, engine=engine)
