"""Each aggregation against its paper: closed forms, optimality conditions, limits."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastmeta.aggregation import CAGrad, PCGrad
from fastmeta.gradients import TaskGradients
from tests.aggregation.jacobians import SEED, direction, jacobian, jacobians, weights

CLOSE = {"rtol": 1e-6, "atol": 1e-6}
few = settings(max_examples=30)


def peaceful(tasks: int) -> Tensor:
    """Task gradients without conflicts."""
    return torch.rand(tasks, tasks + 3, dtype=torch.float64)


@few
@given(jacobians())
def test_pcgrad_is_its_algorithm(gradients: Tensor) -> None:
    orders = torch.rand(
        len(gradients), len(gradients), generator=torch.Generator().manual_seed(SEED)
    ).argsort(1)
    total = torch.zeros(gradients.shape[1], dtype=gradients.dtype)
    for i, order in enumerate(orders.tolist()):
        g = gradients[i].clone()
        for j in order:
            if j != i and g @ gradients[j] < 0:
                g -= (g @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
        total += g
    torch.testing.assert_close(direction("pcgrad", gradients), total / len(gradients), **CLOSE)


def test_pcgrad_draws_from_torchs_cpu_generator() -> None:
    gradients = TaskGradients(torch.randn(7, 3))
    state = torch.get_rng_state()
    first = PCGrad().weights(gradients)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    assert torch.equal(PCGrad().weights(gradients), first)


@pytest.mark.parametrize("name", ["pcgrad", "upgrad"])
def test_without_conflicts_nothing_is_projected(name: str) -> None:
    found = weights(name, peaceful(5))
    torch.testing.assert_close(found, torch.full_like(found, 1 / 5))


@few
@given(jacobians())
def test_mgda_is_the_shortest_convex_combination(gradients: Tensor) -> None:
    w = weights("mgda", gradients)
    d = w @ gradients
    assert (w >= 0).all()
    torch.testing.assert_close(w.sum(), torch.ones_like(w[0]))
    # d is the point of a convex set nearest to 0 exactly if no point of it lies before d.
    assert (gradients @ d).min() >= d @ d - 1e-7 * gradients.norm() ** 2


def test_mgda_of_two_tasks() -> None:
    a, b = gradients = jacobian(2, 5)
    share = (b @ (b - a) / ((a - b) @ (a - b))).clamp(0, 1)
    torch.testing.assert_close(weights("mgda", gradients), torch.stack([share, 1 - share]), **CLOSE)


@few
@given(jacobians(), st.floats(0.01, 20))
def test_cagrad_solves_its_problem_and_the_dual(gradients: Tensor, c: float) -> None:
    w = weights("cagrad", gradients, c=c)
    mean, d = gradients.mean(0), w @ gradients
    radius, scale = c * mean.norm(), (1 + c) * gradients.norm() ** 2
    assert (d - mean).norm() <= radius + 1e-6 * gradients.norm()
    dual = w - 1 / len(gradients)
    assert (dual >= -1e-12).all()
    dual /= dual.sum()
    # No d in the ball is better for the worst task than the dual's value, whatever its weights.
    bound = dual @ gradients @ mean + radius * (dual @ gradients).norm()
    assert (gradients @ d).min() >= bound - 1e-6 * scale


def test_cagrad_between_the_mean_and_mgda() -> None:
    gradients = jacobian(4, 6)
    mean = torch.full((4,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(weights("cagrad", gradients, c=0), mean, **CLOSE)
    far = weights("cagrad", gradients, c=1e6)
    torch.testing.assert_close(far / far.sum(), weights("mgda", gradients), rtol=1e-4, atol=1e-4)


def test_cagrad_resolves_conflicts_where_the_dual_vanishes() -> None:
    gradients = torch.tensor([[1.0, 0, 0], [-0.2, 1, 0], [0, 0, 0]], dtype=torch.float64)
    # The mean (0.8, 1) / 3 agrees with both tasks; the zero one cannot get better.
    torch.testing.assert_close(direction("cagrad", gradients), gradients.mean(0), **CLOSE)
    gradients[1, 0] = -3
    # Here it conflicts with the first, (-2, 1) / 3: (0, 1/3) is nearest, within c = 1.
    nearest = torch.tensor([0, 1 / 3, 0], dtype=torch.float64)
    torch.testing.assert_close(direction("cagrad", gradients, c=1), nearest, **CLOSE)


@pytest.mark.parametrize("c", [-0.1, float("nan"), float("inf")])
def test_cagrad_refuses_an_invalid_radius(c: float) -> None:
    with pytest.raises(ValueError, match="c must be a finite number of at least 0, got"):
        CAGrad(c)


def nearest_without_conflict(gradients: Tensor, g: Tensor) -> Tensor:
    """Projection of ``g`` on ``{d : gradients @ d >= 0}``, by enumeration of all faces."""
    found = []
    for face in chain.from_iterable(
        combinations(range(len(gradients)), n) for n in range(len(gradients))
    ):
        d = g
        if face:
            basis = torch.linalg.qr(gradients[list(face)].mT)[0]
            d = g - basis @ (basis.mT @ g)
        if (gradients @ d).min() >= -1e-10:
            found.append(d)
    found.append(g - gradients.mT @ torch.linalg.solve(gradients @ gradients.mT, gradients @ g))
    return min(found, key=lambda d: (d - g).norm().item())


@few
@given(jacobians(max_tasks=5))
def test_upgrad_is_the_mean_of_projections(gradients: Tensor) -> None:
    projections = [nearest_without_conflict(gradients, g) for g in gradients]
    torch.testing.assert_close(
        direction("upgrad", gradients), torch.stack(projections).mean(0), **CLOSE
    )
    assert (weights("upgrad", gradients) >= 1 / len(gradients)).all()  # v >= e_i / T, added up


@few
@given(jacobians())
def test_nash_mtl_is_the_bargaining_solution(gradients: Tensor) -> None:
    w = weights("nash-mtl", gradients)
    assert (w > 0).all()
    torch.testing.assert_close(w.sum(), torch.ones_like(w[0]))
    product = w * (
        gradients @ (w @ gradients)
    )  # one number, if G a = 1 / a for a in proportion to w
    torch.testing.assert_close(product, product.mean().expand_as(product), **CLOSE)


@few
@given(jacobians())
def test_imtl_g_has_equal_projections(gradients: Tensor) -> None:
    w = weights("imtl-g", gradients)
    torch.testing.assert_close(w.sum(), torch.ones_like(w[0]))
    projections = gradients @ (w @ gradients) / gradients.norm(dim=1)
    error = projections - projections.mean()
    assert error.norm() <= 1e-6 * w.norm() * gradients.norm()


@few
@given(jacobians())
def test_aligned_mtl_is_the_mean_of_aligned_gradients(gradients: Tensor) -> None:
    u, s, v = torch.linalg.svd(gradients, full_matrices=False)
    torch.testing.assert_close(
        direction("aligned-mtl", gradients), (s[-1] * u @ v).mean(0), **CLOSE
    )


def test_gsl_weights_are_those_of_amfs() -> None:
    gradients = torch.randn(4, 6, dtype=torch.float64)
    cosines = torch.cosine_similarity(gradients, gradients.mean(0, keepdim=True))
    for tau in (1.0, 0.3):
        found = weights("gsl", gradients, tau=tau)
        torch.testing.assert_close(found, torch.softmax(cosines / tau, 0), **CLOSE)
    equal = torch.full((4,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(weights("gsl", gradients[:1].expand(4, -1)), equal, **CLOSE)
    torch.testing.assert_close(weights("gsl", gradients, tau=1e9), equal, **CLOSE)
    pair = gradients[:2] / gradients[:2].norm(dim=1, keepdim=True)
    torch.testing.assert_close(weights("gsl", pair), equal[:2] * 2, **CLOSE)
