"""The calibrated correction (R4): its fit, schedule, cost and side effects."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastmeta import FOMAML, GSL, MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, MetaSGD
from fastmeta.aggregation import GradientAgreement, Mean
from fastmeta.metagrad import CalibratedGSL, Exact, FirstOrder, MetaGradient
from fastmeta.metagrad.gsl.calibrated import least_squares
from tests.helpers.problems import MODULES, Drifting, Noisy, loss, mlp, tasks
from tests.helpers.reference_loops import LR, reference_meta_gradients, support_gradients


def gradients(module: nn.Module, batch: TaskBatch, steps: int, count: int, **options) -> list:
    """Meta-gradients of ``count`` meta-steps that do not change the parameters."""
    learner = GSL(module, loss, inner_lr=LR, inner_steps=steps, variant="R4", **options)
    return [learner.meta_gradient(batch)[0] for _ in range(count)]


def basis(module: nn.Module, batch: TaskBatch, steps: int) -> Tensor:
    """``G_in``, ``g_q`` and the secant, ``(3, T, P)``, independent of the code under test."""
    first, second = support_gradients(module, batch, 1), support_gradients(module, batch, 2)
    mean, query = (
        support_gradients(module, batch, steps),
        reference_meta_gradients(module, batch, steps, second_order=False),
    )
    return torch.stack([mean, query, first - (2 * second - first)])


def fit(vectors: Tensor, target: Tensor) -> Tensor:
    solved = torch.linalg.lstsq(vectors.flatten(1).T, target.flatten()[:, None])
    return solved.solution[:, 0]


@pytest.mark.parametrize("secant", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_it_is_the_least_squares_fit_to_the_hessian_terms(steps: int, secant: bool) -> None:
    module, batch = mlp().double(), tasks(4)
    vectors = basis(module, batch, steps)[: 2 + secant]
    exact = reference_meta_gradients(module, batch, steps, second_order=True)
    c = fit(vectors[:, :3], (exact - vectors[1])[:3])
    expected = vectors[1] + torch.einsum("b,btp->tp", c, vectors)
    plain = FOMAML(module, loss, inner_lr=LR, inner_steps=steps, engine="loop")
    first, found = gradients(module, batch, steps, 2, tasks=3, secant=secant)
    assert torch.equal(first, plain.meta_gradient(batch)[0])
    torch.testing.assert_close(found, expected.mean(0), rtol=1e-6, atol=1e-8)


def test_calibrations_are_averaged() -> None:
    module = mlp().double()
    learner = GSL(module, loss, inner_lr=LR, variant="R4", every=2, tasks=3, decay=0.25)
    expected = None
    for step in range(5):
        batch = tasks(3)
        vectors, exact = (
            basis(module, batch, 1),
            reference_meta_gradients(module, batch, 1, second_order=True),
        )
        if step % 2 == 0:
            c = fit(vectors, exact - vectors[1])
            expected = c if expected is None else 0.25 * expected + 0.75 * c
        learner.meta_gradient(batch)
        torch.testing.assert_close(learner._state["coefficients"], expected, rtol=1e-6, atol=1e-8)


class Line(nn.Module):
    """``x @ theta``; with a squared error, every task with the same ``x`` has the same Hessian."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(size, 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.theta


def regression(size: int, count: int = 4, same_query: bool = False) -> TaskBatch:
    """Tasks with a common ``x`` and different ``y``."""
    x = torch.randn(6, size, dtype=torch.float64).expand(count, -1, -1)
    y, z = torch.randn(2, count, 6, 1, dtype=torch.float64)
    return TaskBatch(x, y, x, y if same_query else z)


@pytest.mark.parametrize(
    ("size", "steps", "same_query"),
    # In one dimension the Hessian term is a multiple of g_q. In two, H^2 is a combination of H and
    # I; with the same examples in both sets and one step, all three vectors and H g_q are then
    # combinations of g_s and H g_s, the same for all tasks.
    [(1, 1, False), (1, 3, False), (2, 1, True)],
)
@pytest.mark.parametrize("secant", [True, False])
def test_it_is_exact_where_the_basis_spans_the_hessian_term(
    size: int, steps: int, same_query: bool, secant: bool
) -> None:
    module, batch = Line(size), regression(size, same_query=same_query)
    found = {}
    for metagrad in (Exact(), FirstOrder(), CalibratedGSL(tasks=3, secant=secant)):
        learner = MetaLearner(
            module,
            nn.functional.mse_loss,
            adaptation=SGD(0.05, steps),
            metagrad=metagrad,
            aggregation=Mean(),
        )
        learner.meta_gradient(batch)
        found[type(metagrad)] = learner.meta_gradient(batch)[0]
    exact = found[Exact]
    assert (found[FirstOrder] - exact).norm() > 1e-3 * exact.norm()
    assert (found[CalibratedGSL] - exact).norm() <= 1e-6 * exact.norm()


@settings(max_examples=50)
@given(st.integers(1, 4), st.integers(0, 2**31), st.booleans())
def test_least_squares(count: int, seed: int, twice: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 12, generator=generator, dtype=torch.float64)
    vectors *= 10 ** (6 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 3)
    if twice:
        vectors = torch.cat([vectors, vectors[:1], torch.zeros_like(vectors[:1])])
    target = torch.randn(12, generator=generator, dtype=torch.float64)
    rows = torch.cat([vectors, target[None]])
    found = least_squares(rows @ rows.T) @ vectors
    expected = torch.linalg.pinv(vectors.T) @ target @ vectors
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("secant", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_between_calibrations_it_costs_as_much_as_first_order(
    steps: int, secant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, grad = [], torch.autograd.grad

    def watched(*args, **kwargs):
        calls.append(kwargs.get("create_graph", False))
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    learner = GSL(
        mlp(), loss, inner_lr=LR, inner_steps=steps, variant="R4", every=3, tasks=2, secant=secant
    )
    each = steps + 1 + (secant and steps == 1)  # inner steps, query, the secant's second gradient
    for step in range(7):
        calls.clear()
        learner.meta_gradient(tasks(4, torch.float32))
        assert sum(calls) == (2 * steps if step % 3 == 0 else 0)  # graphs of two tasks' steps
        if step % 3:
            assert calls == [False] * 4 * each


@pytest.mark.parametrize("secant", [True, False])
@pytest.mark.parametrize("make", [Noisy, Drifting, MODULES["running batch norm"]])
def test_calibrations_have_no_side_effects(make: Callable[[], nn.Module], secant: bool) -> None:
    module, batch = make().double(), tasks(2)
    seen: list[tuple] = []
    for metagrad in (FirstOrder(), CalibratedGSL(every=1, secant=secant)):
        torch.manual_seed(7)
        own = copy.deepcopy(module)
        learner = MetaLearner(own, loss, adaptation=SGD(LR), metagrad=metagrad, aggregation=Mean())
        seen.append((learner.meta_gradient(batch)[0], torch.get_rng_state(), *own.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_rates_keep_their_first_order_gradient() -> None:
    module, batch = mlp().double(), tasks(3)

    def row(metagrad: MetaGradient) -> Tensor:
        learner = MetaLearner(
            module, loss, adaptation=MetaSGD(LR), metagrad=metagrad, aggregation=Mean()
        )
        learner.meta_gradient(batch)
        return learner.meta_gradient(batch)[0]

    plain, found = row(FirstOrder()), row(CalibratedGSL())
    size = len(plain) // 2
    assert torch.equal(found[size:], plain[size:])
    assert not torch.allclose(found[:size], plain[:size])


def test_an_aggregation_gets_the_inner_gradients() -> None:
    module, batch = mlp().double(), tasks(3)
    learner = MetaLearner(
        module, loss, adaptation=SGD(LR), metagrad=CalibratedGSL(), aggregation=GradientAgreement()
    )
    u = reference_meta_gradients(module, batch, 1, second_order=False)
    v = support_gradients(module, batch, 1)
    dots = v @ v.sum(0)
    torch.testing.assert_close(learner.meta_gradient(batch)[0], (dots / dots.abs().sum()) @ u)


def test_an_overflow_or_failure_keeps_the_coefficients_finite() -> None:
    module, batch = mlp().double(), tasks(3)
    learner = GSL(module, loss, inner_lr=LR, variant="R4", every=1)
    corrupt = TaskBatch(
        batch.support_x * float("inf"), batch.support_y, batch.query_x, batch.query_y
    )
    learner.meta_gradient(corrupt)
    assert not learner._state
    learner.meta_gradient(batch)
    before = learner._state["coefficients"]
    learner.meta_gradient(corrupt)
    assert torch.equal(learner._state["coefficients"], before)
    wrong = batch.query_y.clone()
    wrong[2] = 99
    with pytest.raises(IndexError):
        learner.meta_gradient(TaskBatch(batch.support_x, batch.support_y, batch.query_x, wrong))
    learner.meta_gradient(batch)
    assert learner._state["coefficients"].isfinite().all()


def test_errors() -> None:
    for option in ("every", "tasks"):
        with pytest.raises(ValueError, match=f"{option} must be an integer of at least 1, got 0"):
            CalibratedGSL(**{option: 0})
    for decay in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"decay must be a number in \[0, 1\), got"):
            CalibratedGSL(decay=decay)
    batch = tasks(2, torch.float32)
    with pytest.raises(ValueError, match="took no step"):
        gradients(mlp(), batch, 0, 1)
    with pytest.raises(ValueError, match="CalibratedGSL does not declare task_batchable"):
        gradients(mlp(), batch, 1, 1, engine="batched")
    with pytest.raises(ValueError, match="second derivatives keep the recomputed activations"):
        gradients(mlp(), batch, 1, 1, checkpoint=True)
    fitted, other = (
        GSL(mlp(), loss, inner_lr=LR, variant="R4", secant=secant) for secant in (False, True)
    )
    fitted.meta_gradient(batch)
    with pytest.raises(ValueError, match="expected 3 coefficients with secant=True, got 2"):
        other.load_state_dict(fitted.state_dict())
    assert other.steps_taken == 0
    assert not other._state
