"""Forward-over-reverse derivatives of SiLU, which torch does not have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta import MetaLearner
from fastmeta.adaptation import SGD, LayerPattern
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Recursion
from tests.helpers.problems import WAYS, loss, tasks
from tests.helpers.reference_loops import LR, reference_meta_gradients

TORCHS = F.silu


def network(inplace: bool) -> nn.Module:
    silu = nn.SiLU(inplace)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), silu, nn.Linear(8, 8), silu, nn.Linear(8, WAYS)
    ).double()


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("inplace", [True, False])
def test_equals_plain_autograd(engine, inplace: bool) -> None:
    module, batch = network(inplace), tasks()
    expected = reference_meta_gradients(network_like(module), batch, 2, True).mean(0)
    learner = MetaLearner(
        module,
        loss,
        adaptation=SGD(LR, 2),
        metagrad=Recursion(hvp="forward"),
        aggregation=Mean(),
        engine=engine,
    )
    found, _ = learner.meta_gradient(batch)
    assert (found - expected).norm() <= 1e-12 * expected.norm()
    assert F.silu is TORCHS


def network_like(module: nn.Module) -> nn.Module:
    other = network(False)
    other.load_state_dict(module.state_dict())
    return other


def test_tangents_that_begin_behind_it() -> None:
    """The inputs of SiLU have no tangent where only the last layer is adapted, its gradients do."""
    module, batch = network(False), tasks()
    rule = LayerPattern(SGD(LR, 2), "head")
    found = []
    for hvp in ("forward", "reverse"):
        metagrad = Recursion(hvp=hvp)
        learner = MetaLearner(
            module, loss, adaptation=rule, metagrad=metagrad, aggregation=Mean(), engine="loop"
        )
        found.append(learner.meta_gradient(batch)[0])
    torch.testing.assert_close(*found)
