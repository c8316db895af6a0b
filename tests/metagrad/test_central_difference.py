"""Hessian-vector products by central differences: errors and side effects."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adam, Adaptation, LayerPattern, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import CentralDifference, Exact, FirstOrder, MetaGradient, Recursion
from tests.helpers.problems import MODULES, Drifting, Noisy, loss, mlp, tasks

ADAPTATIONS: dict[str, Callable[[int], Adaptation]] = {
    "sgd": lambda steps: SGD(0.3, steps),
    "momentum": lambda steps: SGD(0.2, steps, momentum=0.8),
    # A bias before BatchNorm has a gradient of pure rounding error: eps must be far above it.
    "adam": lambda steps: Adam(0.05, steps, eps=0.1),
    "learned rates": lambda steps: MetaSGD(0.3, steps),
    "learned rate a tensor": lambda steps: MetaSGD(0.3, steps, per="tensor"),
}


def learner(
    module: nn.Module, metagrad: MetaGradient, adaptation: Adaptation, **options
) -> MetaLearner:
    return MetaLearner(
        module, loss, adaptation=adaptation, metagrad=metagrad, aggregation=Mean(), **options
    )


def gradient(
    module: nn.Module, metagrad: MetaGradient, adaptation: Adaptation, batch: TaskBatch
) -> Tensor:
    return learner(module, metagrad, adaptation).meta_gradient(batch)[0]


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
@pytest.mark.parametrize("name", MODULES)
def test_it_approximates_the_exact_meta_gradient(name: str, adaptation: str, steps: int) -> None:
    module, batch, inner = MODULES[name]().double(), tasks(2), ADAPTATIONS[adaptation](steps)
    exact = gradient(module, Recursion(), inner, batch)
    for radius in (None, 1e-6):
        found = gradient(module, CentralDifference(radius), inner, batch)
        assert (found - exact).norm() <= 1e-4 * exact.norm()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("adaptation", ["sgd", "momentum", "learned rates"])
def test_the_error_is_quadratic_in_the_radius(adaptation: str, steps: int) -> None:
    module, batch, inner = mlp().double(), tasks(2), ADAPTATIONS[adaptation](steps)
    exact = gradient(module, Recursion(), inner, batch)
    far, near = (
        (gradient(module, CentralDifference(radius), inner, batch) - exact).norm()
        for radius in (2e-4, 1e-4)
    )
    assert 3.9 < far / near < 4.1


@settings(max_examples=20)
@given(radius=st.floats(1e-4, 10), steps=st.integers(1, 4))
def test_exact_for_a_quadratic_loss_at_any_radius(radius: float, steps: int) -> None:
    module = nn.Linear(4, 2).double()
    batch = TaskBatch(*(torch.randn(3, 5, n, dtype=torch.float64) for n in (4, 2, 4, 2)))
    found, exact = (
        MetaLearner(
            module,
            nn.functional.mse_loss,
            adaptation=SGD(0.1, steps),
            metagrad=metagrad,
            aggregation=Mean(),
        ).meta_gradient(batch)[0]
        for metagrad in (CentralDifference(radius), Exact())
    )
    assert (found - exact).norm() <= 1e-9 * exact.norm()


class Bend(nn.Module):
    """A smooth function of one parameter, and a ReLU whose kink is ``offset`` from its value."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.bend = nn.Parameter(torch.full((1, 1), 0.7))
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.bend.square() + 5 * (self.bend - 0.7 - self.offset).relu())


@pytest.mark.parametrize("pattern", [None, "11", "10"])
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("part", [0.01, 0.5])
def test_a_kink_on_one_side_is_avoided(part: float, side: int, pattern: str | None) -> None:
    batch = TaskBatch(*(torch.randn(1, 5, n, dtype=torch.float64) for n in (3, 2, 3, 2)))
    inner = SGD(0.1) if pattern is None else LayerPattern(SGD(0.1), pattern)

    def found(offset: float, metagrad: MetaGradient) -> Tensor:
        module = nn.Sequential(Bend(offset), nn.Linear(3, 2)).double()
        module.load_state_dict(weights)
        return MetaLearner(
            module,
            nn.functional.mse_loss,
            adaptation=inner,
            metagrad=metagrad,
            aggregation=Mean(),
        ).meta_gradient(batch)[0]

    weights = nn.Sequential(Bend(0), nn.Linear(3, 2)).double().state_dict()
    radius, direction = 1e-6, found(side * 1e-9, FirstOrder())
    offset = side * part * radius * (direction[0].abs() / direction.norm()).item()
    exact = found(offset, Exact())
    error = (found(offset, CentralDifference(radius)) - exact).norm()
    assert error <= 1e-4 * exact.norm()


def test_single_precision() -> None:
    module, batch = mlp(), tasks(3, torch.float32)
    exact, found, first = (
        gradient(module, metagrad, SGD(0.3), batch)
        for metagrad in (Exact(), CentralDifference(), FirstOrder())
    )
    assert (found - exact).norm() <= 0.1 * exact.norm()
    assert (found - exact).norm() <= 0.5 * (first - exact).norm()


@pytest.mark.parametrize("make", [Noisy, Drifting], ids=lambda m: m.__name__)
def test_both_evaluations_repeat_the_inner_step(make: Callable[[], nn.Module]) -> None:
    module, batch = make().double(), tasks(2)
    seen = []
    for metagrad in (Exact(), CentralDifference(1e-6)):
        torch.manual_seed(7)
        model = learner(copy.deepcopy(module), metagrad, SGD(0.3, 3))
        seen.append((model.meta_gradient(batch)[0], model.module, torch.get_rng_state()))
    (exact, one, state), (found, other, after) = seen
    assert (found - exact).norm() <= 1e-6 * exact.norm()
    pairs = zip(one.buffers(), other.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(state, after)


def test_it_computes_only_first_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, grad = [], torch.autograd.grad

    def watched(*args, **kwargs):
        calls.append(kwargs.get("create_graph", False))
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    # Two tasks, three inner steps: one gradient per step and query, two per step of the sweep.
    gradient(mlp(), CentralDifference(), SGD(0.1, 3), tasks(2, torch.float32))
    assert calls == [False] * 2 * (3 + 1 + 2 * 3)


def test_a_constant_loss() -> None:
    batch = tasks(2)
    model = MetaLearner(
        mlp().double(),
        lambda output, target: 0 * loss(output, target),
        adaptation=SGD(0.3, 2),
        metagrad=CentralDifference(),
        aggregation=Mean(),
    )
    assert torch.equal(model.meta_gradient(batch)[0], torch.zeros(163, dtype=torch.float64))


def test_with_activation_checkpointing() -> None:
    module, batch = nn.Sequential(mlp(), nn.Identity()).double(), tasks(2)
    plain, checkpointed = (
        learner(module, CentralDifference(1e-6), SGD(0.3), checkpoint=checkpoint)
        for checkpoint in (False, True)
    )
    torch.testing.assert_close(checkpointed.meta_gradient(batch)[0], plain.meta_gradient(batch)[0])


def test_errors() -> None:
    for radius in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="radius must be a positive finite number"):
            CentralDifference(radius)
    model = learner(mlp(), CentralDifference(), SGD(0.1), engine="batched")
    with pytest.raises(ValueError, match="CentralDifference does not declare task_batchable"):
        model.step(tasks(2, torch.float32))
