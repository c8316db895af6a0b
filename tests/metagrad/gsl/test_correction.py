"""The correction and the weights of GSL against plain autograd in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import fastmeta
from fastmeta import FOMAML, GSL, TaskBatch
from tests.helpers.problems import loss, mlp, tasks
from tests.helpers.reference_loops import LR, reference_meta_gradients, support_gradients


def gradient(module: nn.Module, batch: TaskBatch, steps: int = 2, **options) -> Tensor:
    options = {"variant": "correction", **options}
    return GSL(module, loss, inner_lr=LR, inner_steps=steps, **options).meta_gradient(batch)[0]


@pytest.mark.parametrize(
    "options", [{"variant": "R0"}, {"variant": "R1", "eta": 0.0}, {"variant": "R2", "eta": 0.0}]
)
def test_zero_eta_is_bitwise_fomaml(module: nn.Module, options: dict) -> None:
    batch = tasks()
    expected, _ = FOMAML(module, loss, inner_lr=LR, inner_steps=2).meta_gradient(batch)
    assert torch.equal(gradient(module, batch, **options), expected)


def test_only_the_l2_loss_is_support_only_reptile() -> None:
    module, batch = mlp().double(), tasks()
    found = gradient(module, batch, eta=0.5, lam_c=0.0, lam_2=2.0, magnitude="none")
    torch.testing.assert_close(found, support_gradients(module, batch, 2).mean(0))


@pytest.mark.parametrize("scope", ["vector", "layer"])
@pytest.mark.parametrize("magnitude", ["none", "norm-match", "ratio", "clip"])
def test_the_correction_is_the_gradient_of_the_gsl_loss(scope: str, magnitude: str) -> None:
    module, batch = mlp().double(), tasks()
    u = reference_meta_gradients(module, batch, 2, second_order=False)
    v = support_gradients(module, batch, 2)
    layout = fastmeta.FlatLayout.of(list(module.parameters()))
    cuts = layout.bounds if scope == "layer" else (0, layout.size)
    expected = u.clone()
    for begin, end in pairwise(cuts):
        for i in range(len(u)):
            part = u[i, begin:end].clone().requires_grad_()
            other = v[i, begin:end]
            value = 0.7 * (1 - torch.cosine_similarity(part, other, dim=0))
            value = value + 0.1 * (part - other).square().sum()
            (d,) = torch.autograd.grad(value, part)
            full = part.norm() / d.norm()
            scale = {"none": 1.0, "norm-match": full, "ratio": 0.5 * full}.get(magnitude)
            scale = min(1.0, 0.5 * full) if scale is None else scale
            expected[i, begin:end] -= 0.3 * scale * d
    options = {"lam_c": 0.7, "lam_2": 0.2, "ratio": 0.5, "scope": scope, "magnitude": magnitude}
    found = gradient(module, batch, eta=0.3, **options)
    torch.testing.assert_close(found, expected.mean(0))


def test_r2_updates_one_weight_per_layer_against_the_loss() -> None:
    module, batch = mlp().double(), tasks()
    learner = GSL(module, loss, inner_lr=LR, variant="R2", eta=0.05, lam_2=0.1)
    bounds = fastmeta.FlatLayout.of(list(module.parameters())).bounds
    sizes = torch.tensor([b - a for a, b in pairwise(bounds)])
    u = reference_meta_gradients(module, batch, 1, second_order=False)
    v = support_gradients(module, batch, 1)
    w = torch.ones(len(sizes), dtype=torch.float64)
    for _ in range(3):  # the module is unchanged, so that only the weights move
        scale = w.clone().requires_grad_()
        columns = scale.repeat_interleave(sizes)
        losses = [
            1
            - torch.cosine_similarity(columns * a, b, dim=0)
            + 0.05 * (columns * a - b).square().sum()
            for a, b in zip(u, v, strict=True)
        ]
        (slope,) = torch.autograd.grad(sum(losses) / len(losses), scale)
        w = (w - 0.05 * slope).clamp(0.1, 10)
        found, _ = learner.meta_gradient(batch)
        torch.testing.assert_close(found, w.repeat_interleave(sizes) * u.mean(0))


def test_r3_weights_tasks_by_their_similarity_with_the_mean() -> None:
    module, batch = mlp().double(), tasks(5)
    u = reference_meta_gradients(module, batch, 1, second_order=False)
    cosine = torch.cosine_similarity(u, u.mean(0)[None])
    expected = torch.softmax(-(1 - cosine) / 0.2, 0) @ u
    found = gradient(module, batch, 1, variant="R3", tau=0.2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("variant", ["correction", "similarity"])
def test_the_schedule_counts_meta_steps(variant: str) -> None:
    module, batch = mlp().double(), tasks()
    learner = GSL(module, loss, inner_lr=LR, variant=variant, eta=0.4, schedule="until:2")
    plain, _ = FOMAML(module, loss, inner_lr=LR).meta_gradient(batch)
    differ = [not torch.equal(learner.meta_gradient(batch)[0], plain) for _ in range(4)]
    assert differ == [True, True, False, False]


def test_invariant_to_the_order_of_tasks() -> None:
    module, batch = mlp().double(), tasks(4)
    shuffled = TaskBatch(
        *(p[[2, 0, 3, 1]] for p in (batch.support_x, batch.support_y, batch.query_x, batch.query_y))
    )
    for options in ({"eta": 0.3}, {"variant": "R3"}, {"variant": "R2"}):
        torch.testing.assert_close(
            gradient(module, batch, **options), gradient(module, shuffled, **options)
        )


def test_half_precision_modules() -> None:
    module, batch = mlp().to(torch.bfloat16), tasks(dtype=torch.bfloat16)
    found = gradient(module, batch, eta=0.3)
    assert found.dtype == torch.bfloat16
    wide = mlp().double()
    wide.load_state_dict(module.state_dict())
    double = TaskBatch(
        batch.support_x.double(), batch.support_y, batch.query_x.double(), batch.query_y
    )
    expected = gradient(wide, double, eta=0.3)
    assert torch.cosine_similarity(found.double(), expected, dim=0) > 0.98
