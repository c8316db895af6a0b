"""Each aggregation against its paper: closed forms, optimality conditions, limits."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jacobians import SEED, direction, jacobian, jacobians, weights
from torch import Tensor

from fastmeta.aggregation import CAGrad, PCGrad
from fastmeta.gradients import TaskGradients

CLOSE = {"rtol": 1e-6, "atol": 1e-6}
few = settings(max_examples=30)


def peaceful(tasks: int) -> Tensor:
    """Rows of which no two conflict."""
    return torch.rand(tasks, tasks + 3, dtype=torch.float64)


@few
@given(jacobians())
def test_pcgrad_is_its_algorithm(rows: Tensor) -> None:
    orders = torch.rand(
        len(rows), len(rows), generator=torch.Generator().manual_seed(SEED)
    ).argsort(1)
    total = torch.zeros(rows.shape[1], dtype=rows.dtype)
    for i, order in enumerate(orders.tolist()):
        g = rows[i].clone()
        for j in order:
            if j != i and g @ rows[j] < 0:
                g -= (g @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        total += g
    torch.testing.assert_close(direction("pcgrad", rows), total / len(rows), **CLOSE)


def test_pcgrad_draws_from_torchs_cpu_generator() -> None:
    rows = TaskGradients(torch.randn(7, 3))
    state = torch.get_rng_state()
    first = PCGrad().weights(rows)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    assert torch.equal(PCGrad().weights(rows), first)


@pytest.mark.parametrize("name", ["pcgrad", "upgrad"])
def test_without_conflict_nothing_is_projected(name: str) -> None:
    found = weights(name, peaceful(5))
    torch.testing.assert_close(found, torch.full_like(found, 1 / 5))


@few
@given(jacobians())
def test_mgda_is_the_shortest_convex_combination(rows: Tensor) -> None:
    w = weights("mgda", rows)
    d = w @ rows
    assert (w >= 0).all()
    torch.testing.assert_close(w.sum(), torch.ones_like(w[0]))
    # d is the point of a convex set nearest to 0 exactly if no point of it lies before d.
    assert (rows @ d).min() >= d @ d - 1e-7 * rows.norm() ** 2


def test_mgda_of_two_tasks() -> None:
    a, b = rows = jacobian(2, 5)
    share = (b @ (b - a) / ((a - b) @ (a - b))).clamp(0, 1)
    torch.testing.assert_close(weights("mgda", rows), torch.stack([share, 1 - share]), **CLOSE)


@few
@given(jacobians(), st.floats(0.01, 20))
def test_cagrad_solves_its_problem_and_the_dual(rows: Tensor, c: float) -> None:
    w = weights("cagrad", rows, c=c)
    mean, d = rows.mean(0), w @ rows
    radius, scale = c * mean.norm(), (1 + c) * rows.norm() ** 2
    assert (d - mean).norm() <= radius + 1e-6 * rows.norm()
    dual = w - 1 / len(rows)
    assert (dual >= -1e-12).all()
    dual /= dual.sum()
    # No d in the ball is better for the worst task than the dual's value, whatever its weights.
    bound = dual @ rows @ mean + radius * (dual @ rows).norm()
    assert (rows @ d).min() >= bound - 1e-6 * scale


def test_cagrad_between_the_mean_and_mgda() -> None:
    rows = jacobian(4, 6)
    mean = torch.full((4,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(weights("cagrad", rows, c=0), mean, **CLOSE)
    far = weights("cagrad", rows, c=1e6)
    torch.testing.assert_close(far / far.sum(), weights("mgda", rows), rtol=1e-4, atol=1e-4)


def test_cagrad_where_the_dual_vanishes_ends_the_conflicts() -> None:
    rows = torch.tensor([[1.0, 0, 0], [-0.2, 1, 0], [0, 0, 0]], dtype=torch.float64)
    # The mean (0.8, 1) / 3 agrees with both tasks; the zero one cannot get better.
    torch.testing.assert_close(direction("cagrad", rows), rows.mean(0), **CLOSE)
    rows[1, 0] = -3
    # Here it conflicts with the first, (-2, 1) / 3: (0, 1/3) is nearest, within c = 1.
    nearest = torch.tensor([0, 1 / 3, 0], dtype=torch.float64)
    torch.testing.assert_close(direction("cagrad", rows, c=1), nearest, **CLOSE)


@pytest.mark.parametrize("c", [-0.1, float("nan"), float("inf")])
def test_cagrad_refuses_a_bad_radius(c: float) -> None:
    with pytest.raises(ValueError, match="c must be a finite number of at least 0, got"):
        CAGrad(c)


def nearest_without_conflict(rows: Tensor, g: Tensor) -> Tensor:
    """The projection of ``g`` on ``{d : rows d >= 0}``, among those on all faces."""
    found = []
    for face in chain.from_iterable(combinations(range(len(rows)), n) for n in range(len(rows))):
        d = g
        if face:
            basis = torch.linalg.qr(rows[list(face)].mT)[0]
            d = g - basis @ (basis.mT @ g)
        if (rows @ d).min() >= -1e-10:
            found.append(d)
    found.append(g - rows.mT @ torch.linalg.solve(rows @ rows.mT, rows @ g))
    return min(found, key=lambda d: (d - g).norm().item())


@few
@given(jacobians(most=5))
def test_upgrad_is_the_mean_of_projections(rows: Tensor) -> None:
    projections = [nearest_without_conflict(rows, g) for g in rows]
    torch.testing.assert_close(direction("upgrad", rows), torch.stack(projections).mean(0), **CLOSE)
    assert (weights("upgrad", rows) >= 1 / len(rows)).all()  # v >= e_i / T, added up


@few
@given(jacobians())
def test_nash_mtl_is_the_bargaining_solution(rows: Tensor) -> None:
    w = weights("nash-mtl", rows)
    assert (w > 0).all()
    torch.testing.assert_close(w.sum(), torch.ones_like(w[0]))
    product = w * (rows @ (w @ rows))  # one number, if G a = 1 / a for a in proportion to w
    torch.testing.assert_close(product, product.mean().expand_as(product), **CLOSE)


@few
@given(jacobians())
def test_imtl_g_has_equal_projections(rows: Tensor) -> None:
    w = weights("imtl-g", rows)
    torch.testing.assert_close(w.sum(), torch.ones_like(w[0]))
    projections = rows @ (w @ rows) / rows.norm(dim=1)
    error = projections - projections.mean()
    assert error.norm() <= 1e-6 * w.norm() * rows.norm()


@few
@given(jacobians())
def test_aligned_mtl_is_the_mean_of_aligned_gradients(rows: Tensor) -> None:
    u, s, v = torch.linalg.svd(rows, full_matrices=False)
    torch.testing.assert_close(direction("aligned-mtl", rows), (s[-1] * u @ v).mean(0), **CLOSE)
