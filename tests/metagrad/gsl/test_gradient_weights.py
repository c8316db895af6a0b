"""Persistent weights of single parameters (R2p) against autograd on the loss."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta import GSL, FlatLayout, TaskBatch
from tests.helpers.problems import loss, mlp, tasks
from tests.helpers.reference_loops import LR, reference_meta_gradients, support_gradients

RATE = 150.0


def learner(module: nn.Module, **options) -> GSL:
    return GSL(module, loss, inner_lr=LR, variant="R2p", **{"eta": RATE, **options})


@pytest.mark.parametrize("schedule", ["constant", "linear:4"])
def test_every_weight_descends_the_loss(schedule: str) -> None:
    module = mlp().double()
    model = learner(module, lam_2=0.1, w_min=0.5, w_max=1.3, schedule=schedule)
    w = torch.ones(163, dtype=torch.float64)
    for step in range(4):
        batch = tasks()
        u = reference_meta_gradients(module, batch, 1, second_order=False)
        v = support_gradients(module, batch, 1)
        scale = w.clone().requires_grad_()
        losses = [
            1 - F.cosine_similarity(scale * a, b, dim=0) + 0.05 * (scale * a - b).square().sum()
            for a, b in zip(u, v, strict=True)
        ]
        (slope,) = torch.autograd.grad(sum(losses) / len(losses), scale)
        rate = RATE if schedule == "constant" else RATE * (1 - step / 4)
        w = (w - rate * slope).clamp(0.5, 1.3)
        gradients = model._task_gradients(batch)[0]
        torch.testing.assert_close(gradients.meta(), w * u)
        torch.testing.assert_close(gradients.support, v)
    assert ((w == 0.5) | (w == 1.3)).any()


def test_a_layer_weight_moves_by_the_sum_of_its_element_weights() -> None:
    """From ones, a layer weight has the sum of the gradients of its element weights."""
    module, batch = mlp().double(), tasks()
    fine, coarse = (
        GSL(module, loss, inner_lr=LR, variant=variant, eta=1e-3) for variant in ("R2p", "R2")
    )
    for model in (fine, coarse):
        model.meta_gradient(batch)
    moved = FlatLayout.of(list(module.parameters())).views(fine._state["weights"] - 1)
    layers = torch.stack([part.sum() for part in moved])
    torch.testing.assert_close(layers, coarse._state["weights"] - 1)


def test_an_overflow_keeps_the_weights_finite() -> None:
    module, batch = mlp(), tasks(3, torch.float32)
    model = learner(module)
    model.meta_gradient(batch)
    before = model._state["weights"]
    x = batch.query_x * float("inf")
    model.meta_gradient(TaskBatch(batch.support_x, batch.support_y, x, batch.query_y))
    assert torch.equal(model._state["weights"], before)


def test_half_precision() -> None:
    module, batch = mlp().to(torch.bfloat16), tasks(3, torch.bfloat16)
    model = learner(module)
    found = model.meta_gradient(batch)[0]
    assert found.dtype == torch.bfloat16
    assert model._state["weights"].dtype == torch.float32
    wide = copy.deepcopy(module).double()
    same = TaskBatch(
        batch.support_x.double(), batch.support_y, batch.query_x.double(), batch.query_y
    )
    expected = learner(wide).meta_gradient(same)[0]
    assert F.cosine_similarity(found.double(), expected, dim=0) > 0.95


def test_weights_of_another_model_are_refused() -> None:
    batch = tasks(2, torch.float32)
    for variant, name, count in (("R2p", "ElementWeights", 163), ("R2", "LayerWeights", 4)):
        model = GSL(mlp(), loss, inner_lr=LR, variant=variant)
        model.meta_gradient(batch)
        other = GSL(
            nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), loss, inner_lr=LR, variant=variant
        )
        assert not other._state
        other._state = dict(model._state)
        with pytest.raises(ValueError, match=f"{name} has {count} gradient weights; expected"):
            other.meta_gradient(batch)
