"""State of learners: what does not fit changes nothing, and components may be shared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import MetaLearner, metagrad
from fastmeta.adaptation import SGD, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import FirstOrder, MetaGradient
from tests.helpers.problems import MODULES, mlp, tasks


def learner_of(way: MetaGradient, module: nn.Module | None = None, **options: Any) -> MetaLearner:
    options = {"adaptation": SGD(0.3), "aggregation": Mean(), **options}
    return MetaLearner(module or mlp(), F.cross_entropy, metagrad=way, **options)


def flat(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [part for value in state.values() for part in flat(value)]
    if isinstance(state, list | tuple):
        return [part for value in state for part in flat(value)]
    return [state]


def equal(a: Any, b: Any) -> bool:
    pairs = list(zip(flat(a), flat(b), strict=True))
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


WRONG: dict[str, tuple[MetaLearner, str]] = {
    "another meta-gradient": (learner_of(metagrad.LayerWeights()), "weights"),
    "another secant": (learner_of(metagrad.CalibratedGSL(every=1)), "coefficients"),
    "another network": (learner_of(FirstOrder(), MODULES["batch norm"]()), "state_dict"),
    "another width": (
        learner_of(FirstOrder(), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))),
        "state",
    ),
    "learned rates": (learner_of(FirstOrder(), adaptation=MetaSGD(0.3)), "4 learned rates"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_state_of_another_learner_changes_nothing(case: str) -> None:
    other, message = WRONG[case]
    batch = tasks(3, torch.float32)
    learner = learner_of(metagrad.GSLCorrection(), optimizer=sgd)
    for each in (other, learner):
        for _ in range(2):
            each.step(batch)
    before = copy.deepcopy(learner.state_dict())
    with pytest.raises((KeyError, RuntimeError, ValueError), match=message):
        learner.load_state_dict(copy.deepcopy(other.state_dict()))
    assert equal(learner.state_dict(), before)
    expected = copy.deepcopy(learner)
    learner.step(batch)
    expected.step(batch)
    assert equal(learner.state_dict(), expected.state_dict())


def test_an_incomplete_state_changes_nothing() -> None:
    learner = learner_of(FirstOrder())
    learner.step(tasks(2, torch.float32))
    before = copy.deepcopy(learner.state_dict())
    state = copy.deepcopy(learner_of(FirstOrder()).state_dict())
    del state["non_finite_guard"]
    with pytest.raises(KeyError, match="non_finite_guard"):
        learner.load_state_dict(state)
    assert equal(learner.state_dict(), before)


STATEFUL = {
    "layer weights": metagrad.LayerWeights(),
    "element weights": metagrad.ElementWeights(eta=50.0),
    "calibrated": metagrad.CalibratedGSL(every=2),
    "curvature": metagrad.CurvatureGSL(schedule="step:1:0.5"),
    "multi-step": metagrad.MultiStep(anneal_steps=3, first_order_steps=1),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_learners_may_share_a_meta_gradient(name: str) -> None:
    shared, batches = STATEFUL[name], [tasks(n, torch.float32) for n in (3, 2, 4, 3)]
    module = mlp()
    pair = [learner_of(shared, copy.deepcopy(module)) for _ in range(2)]
    alone = [learner_of(copy.deepcopy(shared), copy.deepcopy(module)) for _ in range(2)]
    for batch, other in zip(batches, reversed(batches), strict=True):
        for learner, own in ((pair[0], batch), (alone[0], batch)):
            learner.step(own)
        for learner, own in ((pair[1], other), (alone[1], other)):
            learner.step(own)
    for learner, expected in zip(pair, alone, strict=True):
        assert equal(learner.state_dict(), expected.state_dict())
    assert not equal(pair[0].state_dict(), pair[1].state_dict())


def test_an_object_holds_no_state_of_a_step() -> None:
    for shared in STATEFUL.values():
        before = copy.deepcopy(vars(shared))
        learner = learner_of(shared)
        for _ in range(3):
            learner.step(tasks(2, torch.float32))
        assert {k: v for k, v in vars(shared).items() if k != "_exact"} == {
            k: v for k, v in before.items() if k != "_exact"
        }


def test_other_components_share_the_module_but_not_the_state() -> None:
    batch = tasks(3, torch.float32)
    learner = learner_of(metagrad.LayerWeights())
    learner.step(batch)
    before = copy.deepcopy(learner.state_dict())
    other = learner.with_components(metagrad=FirstOrder(), adaptation=SGD(0.1, 2))
    other.meta_gradient(batch)
    learner.with_components().meta_gradient(batch)
    assert other.module is learner.module
    assert equal(learner.state_dict(), before)
    assert "weights" not in other.state_dict()["metagrad"]
