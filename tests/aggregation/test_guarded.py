"""The guard of MGDA: which steps are taken, and what replaces the others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastmeta.aggregation import MGDA, CAGrad, Guarded, Mean, UPGrad
from fastmeta.gradients import TaskGradients
from tests.aggregation.jacobians import direction, jacobian, jacobians, weights

few = settings(max_examples=20)
INNER = ("mean", "agreement", "pcgrad", "imtl-g", "aligned-mtl", "cagrad")


def guarded(inner: str, gradients: Tensor, c: float) -> Tensor:
    own = {"of": "meta"} if inner == "agreement" else {}
    return weights("guarded", gradients, inner=inner, c=c, **own)


@pytest.mark.parametrize("inner", INNER)
@few
@given(jacobians(min_tasks=2), st.floats(-0.5, 1))
def test_steps_that_decrease_every_loss_enough_are_taken(
    inner: str, gradients: Tensor, c: float
) -> None:
    own, shortest = weights(inner, gradients), weights("mgda", gradients)
    least = c * (shortest @ gradients).square().sum()
    worst = (gradients @ (own @ gradients)).min()
    if (worst - least).abs() > 1e-9 * gradients.norm() ** 2:  # else rounding decides
        assert torch.equal(guarded(inner, gradients, c), own if worst > least else shortest)


@few
@given(jacobians())
def test_no_other_step_as_short_passes_the_strictest_guard(gradients: Tensor) -> None:
    shortest = direction("mgda", gradients)
    for inner in INNER:
        d = guarded(inner, gradients, 1.0) @ gradients
        assert (gradients @ d).min() >= shortest @ shortest - 1e-7 * gradients.norm() ** 2
        if d.norm() <= shortest.norm():
            torch.testing.assert_close(d, shortest, rtol=1e-3, atol=1e-3)


@few
@given(jacobians())
def test_a_lax_guard_is_the_inner_aggregation(gradients: Tensor) -> None:
    if direction("mgda", gradients).norm() > 1e-3 * gradients.norm():
        for inner in INNER:
            assert torch.equal(guarded(inner, gradients, -1e12), weights(inner, gradients))


def test_one_task_is_its_gradient() -> None:
    for inner in INNER:
        torch.testing.assert_close(
            guarded(inner, jacobian(1, 4), 0.1).sum() / (1.4 if inner == "cagrad" else 1),
            torch.ones((), dtype=torch.float64),
        )


@pytest.mark.parametrize("inner", [Mean(), UPGrad(), CAGrad(2.0)])
def test_tasks_that_are_left_out_do_not_decide(inner) -> None:
    gradients, finite = jacobian(5, 7), torch.tensor([True, False, True, True, False])
    kept = gradients * finite[:, None]
    found = Guarded(inner, 0.5).weights(TaskGradients(kept, finite=finite))
    expected = Guarded(inner, 0.5).weights(TaskGradients(gradients[finite]))
    torch.testing.assert_close(found[finite], expected)
    assert (found[~finite] == 0).all()


def test_weights_that_are_not_finite_are_replaced() -> None:
    class Broken(Mean):
        def weights(self, gradients: TaskGradients) -> Tensor:
            return super().weights(gradients) * torch.nan

    rows = TaskGradients(jacobian(3, 5))
    assert torch.equal(Guarded(Broken()).weights(rows), MGDA().weights(rows))


def test_the_gram_matrix_is_computed_once() -> None:
    class Counting(TaskGradients):
        count_of_meta = 0

        def meta(self) -> Tensor:
            self.count_of_meta += 1
            return super().meta()

    rows = Counting(jacobian(3, 5))
    Guarded(CAGrad()).weights(rows)
    assert rows.count_of_meta == 1


@pytest.mark.parametrize("c", [1.1, float("nan"), float("-inf"), "1"])
def test_a_guard_that_refuses_every_step_is_refused(c) -> None:
    with pytest.raises(ValueError, match=r"c must be a number in \[-inf, 1\], got"):
        Guarded(Mean(), c)


def test_options_are_those_of_the_guarded_aggregation() -> None:
    gradients = jacobian(4, 6)
    found = weights("guarded", gradients, inner="cagrad", c=-1e12)
    assert torch.equal(found, weights("cagrad", gradients))
    with pytest.raises(TypeError, match="aggregation 'mean' has no option 'tau'"):
        weights("guarded", gradients, inner="mean", tau=1.0)
    with pytest.raises(ValueError, match=r"inner must be one of .*Did you mean 'upgrad'"):
        weights("guarded", gradients, inner="upgrads")
