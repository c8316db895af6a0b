"""Aggregations as a component of a learner."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fastmeta import MetaLearner
from fastmeta.adaptation import SGD
from fastmeta.aggregation import AGGREGATIONS, GradientAgreement
from fastmeta.data import SineTasks
from fastmeta.metagrad import Exact, FirstOrder, GSLCorrection
from fastmeta.models import MLP
from tests.aggregation.jacobians import ALL, SEED, direction
from tests.helpers.problems import mlp, tasks
from tests.helpers.reference_loops import LR, reference_meta_gradients


@pytest.mark.parametrize("name", ALL)
def test_the_meta_gradient_is_the_weighted_sum(name: str) -> None:
    module, batch = mlp().double(), tasks(4)
    aggregation = GradientAgreement(of="meta") if name == "agreement" else AGGREGATIONS[name]()
    learner = MetaLearner(
        module, F.cross_entropy, adaptation=SGD(LR), metagrad=Exact(), aggregation=aggregation
    )
    torch.manual_seed(SEED)
    found, result = learner.meta_gradient(batch)
    gradients = reference_meta_gradients(module, batch, 1, second_order=True)
    expected = direction(name, gradients, result.query_loss)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metagrad", [FirstOrder, GSLCorrection])
@pytest.mark.parametrize("name", ALL)
def test_training_on_sines(name: str, metagrad) -> None:
    source = SineTasks(tasks=5, shots=5, queries=10, seed=torch.seed() % 2**32)
    module = MLP(1, 1, (16,))
    before = copy.deepcopy(module.state_dict())
    learner = MetaLearner(
        module,
        F.mse_loss,
        adaptation=SGD(0.01, 2),
        metagrad=metagrad(),
        aggregation=AGGREGATIONS[name](),
    )
    for i in range(3):
        assert learner.step(source[i]).query_loss.isfinite().all()
    for key, value in module.state_dict().items():
        assert value.isfinite().all()
        assert not torch.equal(value, before[key])
