"""GSL coefficients and task weights against autograd and closed formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta import ops
from fastmeta.ops.weights import _EPS

LAM_C, LAM_2 = 0.8, 0.3


def gsl(u: Tensor, v: Tensor, lam_c: float = LAM_C, lam_2: float = LAM_2) -> Tensor:
    return lam_c * (1 - F.cosine_similarity(u, v, dim=0)) + lam_2 / 2 * (u - v).square().sum()


def rows(tasks: int = 4, columns: int = 50) -> tuple[Tensor, Tensor]:
    u = torch.randn(tasks, columns, dtype=torch.float64)
    return u, u + torch.randn_like(u)


def meta(u: Tensor, v: Tensor, eta: float, **options: Any) -> Tensor:
    """The corrected task gradients ``m_i``, each combined alone."""
    stats = ops.row_similarity(u, v)
    coef = ops.gsl_coefficients(stats, stats.new_ones(len(u)), stats.new_tensor([eta]), **options)
    one = [ops.combine([u[i : i + 1], v[i : i + 1]], coef[i : i + 1]) for i in range(len(u))]
    return torch.stack(one)


def gradients(u: Tensor, v: Tensor) -> Tensor:
    u = u.clone().requires_grad_()
    total = torch.stack([gsl(a, b) for a, b in zip(u, v, strict=True)]).sum()
    return torch.autograd.grad(total, u)[0]


def test_closed_form_is_the_gradient_of_the_loss() -> None:
    u, v = rows()
    found = meta(u, v, 0.4, lam_c=LAM_C, lam_2=LAM_2, magnitude="none")
    torch.testing.assert_close(found, u - 0.4 * gradients(u, v), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("magnitude", ["norm-match", "ratio", "clip"])
def test_magnitude_rules(magnitude: str) -> None:
    u, v = rows()
    options = {"lam_c": LAM_C, "lam_2": LAM_2}
    moved = u - meta(u, v, 1.0, **options, magnitude=magnitude, ratio=0.5)
    d = gradients(u, v)
    full = u.norm(dim=1) / (d.norm(dim=1) + _EPS)
    scale = {"norm-match": full, "ratio": 0.5 * full, "clip": (0.5 * full).clamp_max(1)}[magnitude]
    torch.testing.assert_close(moved, scale[:, None] * d, rtol=1e-10, atol=1e-10)


def test_cosine_correction_is_orthogonal_to_the_query_gradient() -> None:
    u, v = rows()
    moved = u - meta(u, v, 1.0)
    assert ((moved * u).sum(1).abs() < 1e-10 * u.square().sum(1)).all()
    torch.testing.assert_close(moved.norm(dim=1), u.norm(dim=1))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-4), (torch.float32, 0.02)])
@pytest.mark.parametrize("magnitude", ["none", "norm-match", "clip"])
def test_equal_gradients_need_no_correction(
    magnitude: str, dtype: torch.dtype, most: float
) -> None:
    # d is only rounding, which norm-matching magnifies to its square root, not to |u|.
    u = rows()[0].to(dtype)
    moved = meta(u, u.clone(), 1.0, magnitude=magnitude) - u
    assert (moved.norm(dim=1) <= most * u.norm(dim=1)).all()


@pytest.mark.parametrize("zero", ["query", "support", "both"])
@pytest.mark.parametrize("magnitude", ["none", "norm-match", "ratio", "clip"])
def test_zero_gradients_need_no_correction(zero: str, magnitude: str) -> None:
    u, v = rows()
    if zero in ("query", "both"):
        u[1] = 0
    if zero in ("support", "both"):
        v[1] = 0
    found = meta(u, v, 0.5, magnitude=magnitude)
    assert found.isfinite().all()
    torch.testing.assert_close(found[1], u[1])  # a zero gradient has no cosine term
    stats = ops.row_similarity(u, v).requires_grad_()
    coef = ops.gsl_coefficients(stats, stats.new_ones(4), stats.new_ones(1), magnitude=magnitude)
    assert torch.autograd.grad(coef.square().sum(), stats)[0].isfinite().all()


def test_agreement_weights_match_the_paper() -> None:
    g = torch.randn(5, 30, dtype=torch.float64)
    dots = torch.stack([sum(g[i] @ g[j] for j in range(5)) for i in range(5)])
    expected = dots / dots.abs().sum()
    torch.testing.assert_close(ops.agreement_weights(ops.mean_similarity(g)), expected)


def test_agreement_of_opposed_gradients_is_uniform() -> None:
    g = torch.randn(1, 30, dtype=torch.float64)
    weights = ops.agreement_weights(ops.mean_similarity(torch.cat([g, -g])))
    torch.testing.assert_close(weights, torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("rule", ["linear", "softmax"])
def test_task_weights_compare_with_the_mean(rule: str) -> None:
    g = torch.randn(5, 30, dtype=torch.float64)
    losses = torch.stack([gsl(row, g.mean(0), 0.6, 0.02) for row in g])
    raw = 1 - losses
    expected = raw / raw.abs().sum() if rule == "linear" else torch.softmax(-losses / 0.4, 0)
    options: dict[str, Any] = {"rule": rule, "lam_c": 0.6, "lam_2": 0.02, "tau": 0.4}
    found = ops.gsl_task_weights(ops.mean_similarity(g), **options)
    torch.testing.assert_close(found, expected)


def test_softmax_of_large_losses_does_not_overflow() -> None:
    stats = ops.mean_similarity(1e6 * torch.randn(4, 30))
    weights = ops.gsl_task_weights(stats, lam_2=1.0, tau=1e-6)
    assert weights.isfinite().all()
    assert weights.sum().item() == pytest.approx(1)


def test_pairs_from_the_gram_matrix() -> None:
    g = torch.randn(6, 40, dtype=torch.float64)
    g[2] = 0
    matrix = ops.gram(g)[0]
    cosines = torch.stack([F.cosine_similarity(row[None], g) for row in g])
    torch.testing.assert_close(ops.pair_cosines(matrix), cosines)
    torch.testing.assert_close(ops.pair_distances(matrix), torch.cdist(g, g).square())


def test_gram_is_bitwise_symmetric() -> None:
    matrix = ops.gram(torch.randn(33, 5003))
    assert torch.equal(matrix, matrix.mT)


def test_unit_weights_sum_like_a_loop() -> None:
    for dtype in (torch.float32, torch.float64):
        g = torch.randn(7, 5003, dtype=dtype)
        total = torch.zeros(5003, dtype=dtype)
        for row in g:
            total += row
        assert torch.equal(ops.combine(g, torch.ones(7, dtype=dtype)), total)
