"""Few-shot learners as training runs with the support set in every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, AdamW, Adaptation
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Recursion
from fastmeta.trajectory import metagradient

OPTIMIZERS: dict[str, Callable[[int], Adaptation]] = {
    "sgd": lambda steps: SGD(0.1, steps),
    "momentum": lambda steps: SGD(0.1, steps, momentum=0.9),
    "adamw": lambda steps: AdamW(0.01, steps, eps=1e-3, weight_decay=0.1),
}


@pytest.mark.parametrize("steps", range(1, 6))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learner_equals_metagradient(name: str, steps: int) -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(2, 1, 7, 4).double(), torch.randint(3, (2, 1, 7))
    learner = MetaLearner(
        module,
        F.cross_entropy,
        adaptation=OPTIMIZERS[name](steps),
        metagrad=Recursion(),
        aggregation=Mean(),
    )
    expected, _ = learner.meta_gradient(TaskBatch(x[0], y[0], x[1], y[1]))

    def loss(params: Any, _meta: Any, part: int) -> Tensor:
        return F.cross_entropy(functional_call(module, params, (x[part, 0],)), y[part, 0])

    found = metagradient(
        loss,
        lambda params, meta: loss(params, meta, 1),
        dict(module.named_parameters()),
        None,
        [0] * steps,
        optimizer=OPTIMIZERS[name](steps),
    )
    mine = torch.cat([g.flatten() for g in found.params.values()])
    torch.testing.assert_close(mine, expected.flatten(), rtol=1e-12, atol=1e-14)
