"""Leap's meta-gradient against its definition."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Leap, Reptile
from tests.helpers.problems import MODULES, loss, tasks
from tests.helpers.reference_loops import LR


def learner(module: nn.Module, metagrad: object, steps: int = 3, **options) -> MetaLearner:
    rest = {"metagrad": metagrad, "aggregation": Mean(), "engine": "loop", **options}
    return MetaLearner(module, rest.pop("loss", loss), adaptation=SGD(LR, steps), **rest)


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("name", MODULES)
def test_leap_is_the_sum_of_unit_steps(name: str, engine: str) -> None:
    module, batch = MODULES[name]().double().eval(), tasks()
    made = learner(module, Leap(), engine=engine)
    total: Tensor = torch.zeros((), dtype=torch.float64)
    trained = [n for n, p in module.named_parameters() if p.requires_grad]
    for task in batch:
        points = [made.adapt(task.support_x, task.support_y, k) for k in range(4)]
        flat = [torch.cat([p[n].detach().flatten() for n in trained]) for p in points]
        for before, after in pairwise(flat):
            step = before - after
            total = total + step / step.norm()
    found, result = made.meta_gradient(batch)
    torch.testing.assert_close(found, total / len(batch), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.query_loss, made.evaluate(batch).query_loss)


def test_one_step_has_the_direction_of_reptile() -> None:
    module, batch = MODULES["mlp"]().double(), tasks(1)
    found, _ = learner(module, Leap(), 1).meta_gradient(batch)
    step, _ = learner(module, Reptile(use_query=False), 1).meta_gradient(batch)
    torch.testing.assert_close(found, step / step.norm())


def test_a_step_of_length_zero_has_no_direction() -> None:
    module, x = nn.Linear(2, 1), torch.randn(1, 4, 2)
    solved = TaskBatch(x, module(x).detach(), x, torch.zeros(1, 4, 1))
    found, _ = learner(module, Leap(), loss=F.mse_loss).meta_gradient(solved)
    assert torch.equal(found, torch.zeros(3))
