"""Properties of all aggregations, or of a class of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.aggregation.jacobians import (
    ALL,
    GRAM,
    direction,
    jacobian,
    jacobians,
    orthonormal,
    weights,
)

# For well-conditioned gradients, the noise of 1e-9 grows by a factor of at most 100.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
C = 0.4  # CAGrad's default
unordered = pytest.mark.parametrize("name", sorted({*ALL} - {"pcgrad"}))
every = pytest.mark.parametrize("name", ALL)
few = settings(max_examples=20)


@every
@few
@given(jacobians())
def test_invariant_to_the_basis_of_the_parameters(name: str, gradients: Tensor) -> None:
    turned = gradients @ orthonormal(gradients.shape[1], gradients.shape[1] + 2)
    torch.testing.assert_close(weights(name, turned), weights(name, gradients), **CLOSE)


@every
@few
@given(jacobians(), st.floats(-30, 30))
def test_invariant_to_a_common_factor(name: str, gradients: Tensor, power: float) -> None:
    torch.testing.assert_close(
        weights(name, 10**power * gradients), weights(name, gradients), **CLOSE
    )


@unordered
@few
@given(jacobians(), st.randoms())
def test_invariant_to_the_order_of_tasks(name: str, gradients: Tensor, random) -> None:
    order = random.sample(range(len(gradients)), len(gradients))
    torch.testing.assert_close(
        weights(name, gradients[order]), weights(name, gradients)[order], **CLOSE
    )


@unordered
@few
@given(jacobians())
def test_duplicating_every_task_changes_nothing(name: str, gradients: Tensor) -> None:
    error = direction(name, torch.cat([gradients, gradients])) - direction(name, gradients)
    # IMTL-G divides by a sum that may nearly vanish.
    assert error.norm() <= 1e-5 * gradients.norm() * (1 + weights(name, gradients).square().sum())


@pytest.mark.parametrize("name", ["mean", "pcgrad", "upgrad"])
@few
@given(jacobians())
def test_linear_in_the_norms(name: str, gradients: Tensor) -> None:
    a, b = torch.rand(2, len(gradients), 1, dtype=torch.float64) + 0.1
    parts = direction(name, a * gradients) + direction(name, b * gradients)
    torch.testing.assert_close(direction(name, (a + b) * gradients), parts, **CLOSE)


@pytest.mark.parametrize("name", ["imtl-g", "nash-mtl"])
@few
@given(jacobians())
def test_norms_do_not_change_the_line(name: str, gradients: Tensor) -> None:
    norms = 10 ** (6 * torch.rand(len(gradients), 1, dtype=torch.float64) - 3)
    one, other = direction(name, gradients), direction(name, norms * gradients)
    cosine = torch.cosine_similarity(one, other, dim=0, eps=0)
    assert (cosine.abs() if name == "imtl-g" else cosine) > 1 - 1e-6


@pytest.mark.parametrize("name", ["guarded", "mgda", "nash-mtl", "upgrad"])
@few
@given(jacobians())
def test_no_conflict_with_any_task(name: str, gradients: Tensor) -> None:
    assert (gradients @ direction(name, gradients)).min() >= -1e-6 * gradients.norm() ** 2


@every
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_orthogonal_gradients_of_equal_norm_are_averaged(name: str, tasks: int) -> None:
    found = weights(name, 3 * orthonormal(tasks, tasks + 4))
    scale = 1 + C if name == "cagrad" else 1
    torch.testing.assert_close(found, torch.full_like(found, scale / tasks), **CLOSE)


def degenerate() -> dict[str, Tensor]:
    """Degenerate task gradients, by kind."""
    gradients = jacobian(4, 6)
    return {
        "the same": gradients[[0, 0, 0]],
        "multiples": gradients[[0, 0, 0]] * torch.tensor([[1.0], [2], [1e3]], dtype=torch.float64),
        "opposite": torch.cat([gradients, -gradients]),
        "one opposite": torch.cat([gradients, -gradients[:1]]),
        "stationary": gradients - gradients.mean(0),
        "more tasks than parameters": torch.randn(12, 5, dtype=torch.float64),
        "on a line": torch.randn(9, 1, dtype=torch.float64),
        "integers": torch.randint(-1, 2, (8, 3)).double(),
        "nearly parallel": gradients[:1] + 1e-5 * gradients,
        "of very different norms": gradients * torch.tensor([[1e-9], [1e6], [1], [1e-3]]),
        "zero": torch.zeros(3, 4, dtype=torch.float64),
        "one zero": torch.cat([gradients, torch.zeros_like(gradients[:1])]),
        "two zero": torch.cat([gradients[:1], torch.zeros_like(gradients[:2])]),
    }


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_degenerate_gradients_give_finite_weights(name: str, dtype: torch.dtype) -> None:
    for kind, gradients in degenerate().items():
        found = weights(name, gradients.to(dtype))
        assert found.shape == gradients.shape[:1], kind
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), kind
        assert found.isfinite().all(), kind


@pytest.mark.parametrize(("dtype", "noise"), [(torch.float64, 1e-7), (torch.float32, 1e-3)])
def test_no_conflict_with_degenerate_gradients(dtype: torch.dtype, noise: float) -> None:
    for kind, gradients in degenerate().items():
        norms = gradients.norm(dim=1)
        d = weights("upgrad", gradients.to(dtype)).double() @ gradients
        assert (gradients @ d >= -noise * norms.max() * norms).all(), kind
        d = weights("mgda", gradients.to(dtype)).double() @ gradients
        assert (gradients @ d >= d @ d - noise * norms.max() ** 2).all(), kind


# The weight of a zero gradient, and the factor by which it shrinks d, for T + 1 tasks.
ZERO = {
    "aligned-mtl": (lambda t: 0, lambda t: t / (t + 1)),
    "imtl-g": (lambda t: 0, lambda t: 1),
    "mgda": (lambda t: 1, lambda t: 0),
    "nash-mtl": (lambda t: 0, lambda t: 1),
    "pcgrad": (lambda t: 1 / (t + 1), lambda t: t / (t + 1)),
    "upgrad": (lambda t: 1 / (t + 1), lambda t: t / (t + 1)),
}


@pytest.mark.parametrize("name", ZERO)
@few
@given(jacobians(max_tasks=2))  # of two, PCGrad's order does not matter
def test_a_zero_gradient(name: str, gradients: Tensor) -> None:
    weight, factor = ZERO[name]
    more = torch.cat([gradients, torch.zeros_like(gradients[:1])])
    found, tasks = weights(name, more), len(gradients)
    assert abs(found[-1].item() - weight(tasks)) < 1e-6
    torch.testing.assert_close(found @ more, factor(tasks) * direction(name, gradients), **CLOSE)


@pytest.mark.parametrize("name", GRAM)
def test_zero_gradients_have_equal_weights(name: str) -> None:
    found = weights(name, torch.zeros(4, 7))
    scale = 1 + C if name == "cagrad" else 1
    torch.testing.assert_close(found, torch.full((4,), scale / 4), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", GRAM)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_gradients_give_nan_weights(name: str, value: float) -> None:
    gradients = torch.randn(3, 5)
    gradients[1, 2] = value
    assert weights(name, gradients).isnan().all()


@every
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e15])
def test_float32_gradients_of_any_scale(name: str, scale: float) -> None:
    gradients = 10 * F.normalize(jacobian(4, 200))
    found = weights(name, (scale * gradients).float()).double()
    # Products of 1e-40 keep some 15 bits; conditioning enlarges their rounding by at most 100.
    torch.testing.assert_close(found, weights(name, gradients), rtol=0.01, atol=0.01)
