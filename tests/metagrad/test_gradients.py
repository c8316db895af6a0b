"""Meta-gradients of the learners against plain autograd in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import fastmeta
from fastmeta import FOMAML, GSL, MAML, Reptile, TaskBatch, metagrad, ops
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from tests.helpers.problems import MODULES, loss, mlp, tasks
from tests.helpers.reference_loops import LR, by_hand


def flat(grads: Iterable[Tensor | None], params: Iterable[Tensor]) -> Tensor:
    pairs = zip(grads, params, strict=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in pairs]
    )


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> nn.Module:
    return MODULES[request.param]().double()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_maml_is_exact(module: nn.Module, steps: int) -> None:
    batch = tasks()
    expected = by_hand(module, batch, steps, second_order=True).mean(0)
    found, _ = MAML(module, loss, inner_lr=LR, inner_steps=steps).meta_gradient(batch)
    assert (found - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_fomaml_is_first_order(module: nn.Module, steps: int) -> None:
    batch = tasks()
    expected = by_hand(module, batch, steps, second_order=False).mean(0)
    found, _ = FOMAML(module, loss, inner_lr=LR, inner_steps=steps).meta_gradient(batch)
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_second_derivatives_matter() -> None:
    module, batch = mlp().double(), tasks()
    exact, first = (by_hand(module, batch, 3, order).mean(0) for order in (True, False))
    assert (exact - first).norm() > 0.01 * exact.norm()


def test_reptile_is_the_displacement() -> None:
    module, batch = mlp().double(), tasks()
    learner = Reptile(module, loss, inner_lr=LR, inner_steps=4, use_query=False)
    fast = [learner.adapt(t.support_x, t.support_y) for t in batch]
    expected = sum(
        torch.cat([(p - f[n]).detach().flatten() for n, p in module.named_parameters()])
        for f in fast
    )
    found, _ = learner.meta_gradient(batch)
    torch.testing.assert_close(found, expected / len(batch))


def test_reptile_with_query_trains_on_the_union() -> None:
    module, batch = mlp().double(), tasks()
    found, _ = Reptile(module, loss, inner_lr=LR, inner_steps=1).meta_gradient(batch)
    params = list(module.parameters())
    expected = 0
    for t in batch:
        value = loss(module(t.support_x), t.support_y) + loss(module(t.query_x), t.query_y)
        expected += LR * 0.5 * flat(torch.autograd.grad(value, params), params)
    torch.testing.assert_close(found, expected / len(batch))


def test_one_outer_sgd_step_of_reptile_is_an_interpolation() -> None:
    module, batch = mlp().double(), tasks(1)
    learner = Reptile(
        module,
        loss,
        inner_lr=LR,
        inner_steps=3,
        use_query=False,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.25),
    )
    fast = learner.adapt(batch[0].support_x, batch[0].support_y)
    expected = {n: p + 0.25 * (fast[n] - p) for n, p in copy.deepcopy(module).named_parameters()}
    learner.step(batch)
    for name, param in module.named_parameters():
        torch.testing.assert_close(param, expected[name])


def gradient(module: nn.Module, batch: TaskBatch, steps: int = 2, **options) -> Tensor:
    return GSL(module, loss, inner_lr=LR, inner_steps=steps, **options).meta_gradient(batch)[0]


@pytest.mark.parametrize("variant", ["R0", "R1", "R2"])
def test_gsl_without_rate_is_fomaml_to_the_bit(module: nn.Module, variant: str) -> None:
    batch = tasks()
    expected, _ = FOMAML(module, loss, inner_lr=LR, inner_steps=2).meta_gradient(batch)
    assert torch.equal(gradient(module, batch, variant=variant, eta=0.0), expected)


def support_gradients(module: nn.Module, batch: TaskBatch, steps: int) -> Tensor:
    """Mean inner gradients ``(T, P)``: the displacement in units of the inner learning rate."""
    learner = Reptile(module, loss, inner_lr=LR, inner_steps=steps, use_query=False)
    rows = [learner.meta_gradient(TaskBatch(*(part[None] for part in task)))[0] for task in batch]
    return torch.stack(rows) / (LR * steps)


def test_gsl_with_l2_alone_is_the_support_only_reptile_direction() -> None:
    module, batch = mlp().double(), tasks()
    found = gradient(module, batch, eta=0.5, lam_c=0.0, lam_2=2.0, magnitude="none")
    torch.testing.assert_close(found, support_gradients(module, batch, 2).mean(0))


@pytest.mark.parametrize("scope", ["vector", "layer"])
@pytest.mark.parametrize("magnitude", ["none", "norm-match", "ratio", "clip"])
def test_gsl_subtracts_the_gradient_of_its_loss(scope: str, magnitude: str) -> None:
    module, batch = mlp().double(), tasks()
    u, v = by_hand(module, batch, 2, second_order=False), support_gradients(module, batch, 2)
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


def test_r2_moves_one_weight_a_layer_against_the_loss() -> None:
    module, batch = mlp().double(), tasks()
    learner = GSL(module, loss, inner_lr=LR, variant="R2", eta=0.05, lam_2=0.1, magnitude="none")
    bounds = fastmeta.FlatLayout.of(list(module.parameters())).bounds
    sizes = torch.tensor([b - a for a, b in pairwise(bounds)])
    u, v = by_hand(module, batch, 1, second_order=False), support_gradients(module, batch, 1)
    w = torch.ones(len(sizes), dtype=torch.float64)
    for _ in range(3):  # the module stays, so that the weights alone move
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
    u = by_hand(module, batch, 1, second_order=False)
    cosine = torch.cosine_similarity(u, u.mean(0)[None])
    expected = torch.softmax(-(1 - cosine) / 0.2, 0) @ u
    found = gradient(module, batch, 1, variant="R3", tau=0.2)
    torch.testing.assert_close(found, expected)


def test_gsl_schedule_counts_meta_steps() -> None:
    module, batch = mlp().double(), tasks()
    learner = GSL(module, loss, inner_lr=LR, eta=0.4, schedule="until:2")
    plain, _ = FOMAML(module, loss, inner_lr=LR).meta_gradient(batch)
    differ = [not torch.equal(learner.meta_gradient(batch)[0], plain) for _ in range(4)]
    assert differ == [True, True, False, False]


def test_gradient_agreement_of_meta_gradients() -> None:
    module, batch = mlp().double(), tasks(4)
    u = by_hand(module, batch, 1, second_order=True)
    dots = u @ u.sum(0)
    learner = fastmeta.MetaLearner(
        module,
        loss,
        adaptation=SGD(LR),
        metagrad=metagrad.Exact(),
        aggregation=fastmeta.aggregation.GradientAgreement(of="meta"),
    )
    torch.testing.assert_close(learner.meta_gradient(batch)[0], (dots / dots.abs().sum()) @ u)


def test_gradient_agreement_of_inner_gradients() -> None:
    module, batch = mlp().double(), tasks(4)
    v = support_gradients(module, batch, 2)
    dots = v @ v.sum(0)
    learner = fastmeta.MetaLearner(
        module,
        loss,
        adaptation=SGD(LR, 2),
        metagrad=metagrad.FirstOrder(),
        aggregation=fastmeta.aggregation.GradientAgreement(),
    )
    u = by_hand(module, batch, 2, second_order=False)
    torch.testing.assert_close(learner.meta_gradient(batch)[0], (dots / dots.abs().sum()) @ u)


def test_tasks_may_come_in_any_order() -> None:
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


def test_mean_is_combined_in_one_pass() -> None:
    rows = torch.randn(3, 20)
    found = ops.combine(rows, Mean().weights(fastmeta.rows.TaskRows(rows)))
    torch.testing.assert_close(found, rows.mean(0))
