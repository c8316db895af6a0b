"""Comparison with the exact meta-gradient: values, and no side effects."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta import FOMAML, GSL, MAML, CoLearner, MetaLearner, TaskBatch, metagrad
from fastmeta.adaptation import SGD, MetaSGD
from fastmeta.aggregation import AGGREGATIONS, GradientAgreement, Mean
from fastmeta.learners import compare_with_exact
from fastmeta.metagrad import METAGRADS, FirstOrder, MetaGradient, Recursion
from tests.helpers.problems import MODULES, WAYS, Drifting, Noisy, loss, mlp, tasks
from tests.helpers.reference_loops import LR, reference_meta_gradients

WAYS_TO_LEARN: dict[str, Callable[..., MetaLearner]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    **{
        f"gsl {options}": lambda *a, options=options, **k: GSL(*a, **options, **k)
        for options in (
            {"schedule": "linear:5"},
            {"variant": "R1", "magnitude": "inner-lr"},
            *({"variant": f"R{i}"} for i in ("2", "2p", "3", "5", "6")),
            {"variant": "R4", "every": 2},
        )
    },
}


@pytest.mark.parametrize("name", MODULES)
def test_cosines_and_norms(name: str) -> None:
    module, batch = MODULES[name]().double(), tasks(4)
    exact, own = (
        reference_meta_gradients(module, batch, 2, second_order=order) for order in (True, False)
    )
    found = compare_with_exact(FOMAML(module, loss, inner_lr=LR, inner_steps=2), batch)
    torch.testing.assert_close(found.task_cosine, F.cosine_similarity(own, exact))
    torch.testing.assert_close(found.task_norm_ratio, own.norm(dim=1) / exact.norm(dim=1))
    own, exact = own.mean(0), exact.mean(0)
    torch.testing.assert_close(found.cosine, F.cosine_similarity(own, exact, dim=0))
    torch.testing.assert_close(found.norm_ratio, own.norm() / exact.norm())


def test_an_aggregation_is_compared_with_the_mean() -> None:
    module, batch = mlp().double(), tasks(4)
    exact = reference_meta_gradients(module, batch, 1, second_order=True)
    weights = exact @ exact.sum(0)
    own = (weights / weights.abs().sum()) @ exact
    learner = MAML(module, loss, inner_lr=LR, aggregation=GradientAgreement(of="meta"))
    found = compare_with_exact(learner, batch)
    torch.testing.assert_close(found.task_cosine, torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(found.task_norm_ratio, torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(found.norm_ratio, own.norm() / exact.mean(0).norm())


@pytest.mark.parametrize("make", [Noisy, Drifting, MODULES["running batch norm"]])
@pytest.mark.parametrize("name", WAYS_TO_LEARN)
def test_diagnostics_have_no_side_effects(name: str, make: Callable[[], nn.Module]) -> None:
    module, *batches = make(), *(tasks(3, torch.float32) for _ in range(4))
    finished: list[dict[str, Any]] = []
    for looks in (False, True):
        torch.manual_seed(3)
        learner = WAYS_TO_LEARN[name](copy.deepcopy(module), loss, inner_lr=0.1)
        for batch in batches[1:]:
            if looks:
                grads = [p.grad for p in learner.module.parameters()]
                assert compare_with_exact(learner, batches[0]).cosine.isfinite()
                assert all(
                    p.grad is g for p, g in zip(learner.module.parameters(), grads, strict=True)
                )
            learner.step(batch)
        finished.append({**learner.state_dict(), "generator": torch.get_rng_state()})
    torch.testing.assert_close(*finished, rtol=0, atol=0)


@pytest.mark.parametrize("way", METAGRADS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_combination_with_learned_rates(way: str, aggregation: str) -> None:
    learner = MetaLearner(
        mlp().double(),
        loss,
        adaptation=MetaSGD(0.1, 2),
        metagrad=METAGRADS[way](),
        aggregation=AGGREGATIONS[aggregation](),
    )
    rates = [rate.detach().clone() for rate in learner.adaptation.rates]
    found = compare_with_exact(learner, tasks(3))
    assert found.task_cosine.shape == found.task_norm_ratio.shape == (3,)
    if way in ("exact", "recursion"):
        torch.testing.assert_close(found.task_norm_ratio, torch.ones(3, dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(learner.adaptation.rates, rates, strict=True))


@pytest.mark.parametrize("way", [FirstOrder, metagrad.GSLCorrection])
def test_learned_rates_are_excluded(way: Callable[[], MetaGradient]) -> None:
    module, batch = mlp().double(), tasks(3)
    plain, learned = (
        compare_with_exact(
            MetaLearner(module, loss, adaptation=inner, metagrad=way(), aggregation=Mean()),
            batch,
        )
        for inner in (SGD(LR), MetaSGD(LR))
    )
    torch.testing.assert_close(vars(learned), vars(plain))


def test_both_use_the_same_random_numbers() -> None:
    learner = MetaLearner(
        Noisy().double(), loss, adaptation=SGD(LR, 2), metagrad=Recursion(), aggregation=Mean()
    )
    found = compare_with_exact(learner, tasks(3))
    torch.testing.assert_close(found.task_cosine, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("options", [{"checkpoint": True}, {"engine": "batched"}, {"fuse": False}])
def test_options_of_the_learner(options: dict[str, Any]) -> None:
    module, batch = nn.Sequential(mlp(), nn.Identity()).double(), tasks(3)
    plain, other = (
        compare_with_exact(FOMAML(module, loss, inner_lr=LR, inner_steps=2, **extra), batch)
        for extra in ({}, options)
    )
    torch.testing.assert_close(vars(other), vars(plain))


def test_errors() -> None:
    empty = TaskBatch(*(torch.zeros(0, 2, 4), torch.zeros(0, 2, dtype=torch.long)) * 2)
    with pytest.raises(ValueError, match="no tasks; expected at least one"):
        compare_with_exact(FOMAML(mlp(), loss, inner_lr=LR), empty)
    learner = MetaLearner(
        mlp(), loss, adaptation=MetaSGD(LR), metagrad=FirstOrder(), aggregation=Mean(),
        engine="mlp",
    )  # fmt: skip
    with pytest.raises(ValueError, match="engine 'mlp' cannot run this"):
        compare_with_exact(learner, tasks(2, torch.float32))


def test_a_co_learner_is_part_of_both() -> None:
    learner = MAML(mlp(), loss, inner_lr=0.1, co_learner=CoLearner(nn.Linear(WAYS, WAYS), ""))
    found = compare_with_exact(learner, tasks(3, torch.float32))
    torch.testing.assert_close(found.cosine, torch.ones(()))
    torch.testing.assert_close(found.task_norm_ratio, torch.ones(3))
