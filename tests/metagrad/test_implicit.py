"""The implicit meta-gradient against dense solves, and the conjugate gradient solver."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adaptation, LayerPattern, MetaSGD, ProximalSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact, FirstOrder, Implicit, MetaGradient
from fastmeta.metagrad.implicit import solve
from tests.helpers.problems import MODULES, loss, mlp, tasks
from tests.metagrad.autograd_memory import peak_saved_bytes


def learner(
    module: nn.Module, metagrad: MetaGradient, adaptation: Adaptation, **options: Any
) -> MetaLearner:
    rest = {"loss": loss, "aggregation": Mean(), "engine": "loop", **options}
    return MetaLearner(module, adaptation=adaptation, metagrad=metagrad, **rest)


def gradient(
    module: nn.Module,
    metagrad: MetaGradient,
    adaptation: Adaptation,
    batch: TaskBatch,
    **options: Any,
) -> Tensor:
    return learner(module, metagrad, adaptation, **options).meta_gradient(batch)[0]


def regression(count: int = 2) -> TaskBatch:
    x, query = (torch.randn(count, n, 2, dtype=torch.float64) for n in (5, 7))
    return TaskBatch(x, torch.randn(count, 5, 1).double(), query, torch.randn(count, 7, 1).double())


def small(dropout: float = 0.0) -> nn.Module:
    layers = [nn.Linear(2, 3), nn.Tanh(), nn.Dropout(dropout), nn.Linear(3, 1)]
    return nn.Sequential(*layers).double()


def derivatives(
    module: nn.Module, params: dict[str, Tensor], x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient ``(P,)`` and Hessian ``(P, P)`` of the squared error of one forward pass."""
    leaves = {n: p.detach().requires_grad_() for n, p in params.items()}
    value = F.mse_loss(functional_call(module, leaves, (x,)), y)
    grads = torch.autograd.grad(value, list(leaves.values()), create_graph=True)
    flat = torch.cat([g.flatten() for g in grads])
    rows = [
        torch.autograd.grad(entry, list(leaves.values()), retain_graph=True, materialize_grads=True)
        for entry in flat
    ]
    return flat.detach(), torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert (found - expected).norm() <= tolerance * expected.norm()


def test_a_quadratic_in_closed_form() -> None:
    module, batch, lam = nn.Linear(2, 1).double(), regression(), 1.5
    params = dict(module.named_parameters())
    begin = torch.cat([p.detach().flatten() for p in params.values()])
    rows, steepest = [], 0.0
    for task in batch:
        slope, hessian = derivatives(module, params, task.support_x, task.support_y)
        # The minimum of S + lam/2 |theta - theta_0|^2, where S is quadratic.
        end = begin - torch.linalg.solve(hessian + lam * torch.eye(3), slope)
        fast = {"weight": end[:2].view(1, 2), "bias": end[2:]}
        query, _ = derivatives(module, fast, task.query_x, task.query_y)
        rows.append(torch.linalg.solve(torch.eye(3) + hessian / lam, query))
        steepest = max(steepest, torch.linalg.eigvalsh(hessian)[-1].item())
    adaptation = ProximalSGD(1 / (steepest + lam), 600, lam)
    expected = torch.stack(rows).mean(0)
    for metagrad in (Implicit(cg_steps=3), Exact()):
        assert_near(gradient(module, metagrad, adaptation, batch, loss=F.mse_loss), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_network_solved_densely(dropout: float) -> None:
    module, batch = small(dropout), regression(1)
    seed, task = int(torch.randint(2**31, ())), batch[0]
    torch.manual_seed(seed)
    params = dict(module.named_parameters())
    for _ in range(3):
        value = F.mse_loss(functional_call(module, params, (task.support_x,)), task.support_y)
        grads = torch.autograd.grad(value, list(params.values()))
        params = {n: p - 0.1 * g for (n, p), g in zip(params.items(), grads, strict=True)}
    query, _ = derivatives(module, params, task.query_x, task.query_y)
    after = torch.get_rng_state()
    _, hessian = derivatives(module, params, task.support_x, task.support_y)
    lam = 2 * torch.linalg.eigvalsh(hessian).abs().max().item()
    expected = torch.linalg.solve(torch.eye(len(query)) + hessian / lam, query)
    torch.manual_seed(seed)
    found = gradient(module, Implicit(40, lam), SGD(0.1, 3), batch, loss=F.mse_loss)
    assert_near(found, expected)
    assert (found - query).norm() > 1e-3 * query.norm()
    assert torch.equal(torch.get_rng_state(), after)


def test_exact_where_the_inner_loop_converges() -> None:
    module, batch = small(), regression()
    adaptation = ProximalSGD(0.02, 200, lam=30.0)
    found, exact = (
        gradient(module, metagrad, adaptation, batch, loss=F.mse_loss)
        for metagrad in (Implicit(40), Exact())
    )
    assert_near(found, exact)


@pytest.mark.parametrize("pattern", ["head", "body"])
def test_exact_with_frozen_layers(pattern: str) -> None:
    module, batch = small(), regression()
    adaptation = LayerPattern(ProximalSGD(0.02, 200, lam=30.0), pattern)
    found, exact = (
        gradient(module, metagrad, adaptation, batch, loss=F.mse_loss)
        for metagrad in (Implicit(40), Exact())
    )
    assert_near(found, exact)


@pytest.mark.parametrize("name", MODULES)
def test_infinite_regularization_is_first_order(name: str) -> None:
    module, batch = MODULES[name]().double(), tasks()
    own, other = copy.deepcopy(module), copy.deepcopy(module)
    found = gradient(own, Implicit(lam=1e14), SGD(0.2, 2), batch)
    assert_near(found, gradient(other, FirstOrder(), SGD(0.2, 2), batch))
    # The forward pass for the Hessian does not update running statistics.
    torch.testing.assert_close(list(own.buffers()), list(other.buffers()), rtol=1e-12, atol=1e-14)


def test_which_regularization_is_used() -> None:
    module, batch = mlp().double(), tasks()

    def found(metagrad: Implicit, adaptation: Adaptation) -> Tensor:
        return gradient(module, metagrad, adaptation, batch)

    proximal = ProximalSGD(0.1, 2, lam=3.0)
    assert torch.equal(found(Implicit(), proximal), found(Implicit(lam=3.0), proximal))
    assert torch.equal(found(Implicit(), SGD(0.1)), found(Implicit(lam=2.0), SGD(0.1)))
    for metagrad in (Implicit(damping=4.0), Implicit(lam=2.0, damping=5.0)):
        assert torch.equal(found(metagrad, proximal), found(Implicit(lam=7.0), proximal))
    assert not torch.equal(found(Implicit(lam=2.0), proximal), found(Implicit(), proximal))
    with pytest.raises(ValueError, match=r"lam must be a positive .* got 0\.0"):
        found(Implicit(), ProximalSGD(0.1, lam=0.0))


def test_learned_rates_are_unchanged() -> None:
    model = learner(mlp(), Implicit(), MetaSGD(0.1, 2))
    model.step(tasks(2, torch.float32))
    assert all((rate == torch.tensor(0.1)).all() for rate in model.adaptation.rates)


def test_memory_is_independent_of_inner_and_solver_steps() -> None:
    batch = tasks(2, torch.float32)

    def memory(steps: int, cg_steps: int) -> int:
        model = learner(MODULES["batch norm"](), Implicit(cg_steps), ProximalSGD(0.1, steps))
        return peak_saved_bytes(lambda: model.meta_gradient(batch))

    assert memory(1, 1) == memory(9, 1) == memory(1, 9)


@settings(max_examples=10)
@given(order=st.permutations(range(4)), times=st.integers(1, 3))
def test_invariant_to_order_and_repetition_of_tasks(order: list[int], times: int) -> None:
    module, batch = mlp().double(), tasks(4)
    again = TaskBatch(*(part[order * times] for part in vars(batch).values()))
    found = [gradient(module, Implicit(), ProximalSGD(0.1, 2), some) for some in (batch, again)]
    assert_near(found[1], found[0], 1e-12)


def test_the_query_gradient_where_the_solver_ends_at_once() -> None:
    b = torch.tensor([1.0, 0.0, 0.0])
    for first in (torch.diag(torch.tensor([-1.0, 2.0, 3.0])), torch.zeros(3, 3)):
        assert torch.equal(solve(first.mv, b, 5), b)
    tiny = torch.full((2,), 1e-170, dtype=torch.float64)
    matrix = 1e20 * torch.eye(2, dtype=torch.float64)
    assert tiny.dot(tiny) == 0 < tiny.dot(matrix.mv(tiny))
    assert torch.equal(solve(matrix.mv, tiny, 5), tiny)


def test_invalid_options() -> None:
    with pytest.raises(ValueError, match="cg_steps must be an integer of at least 1, got 0"):
        Implicit(0)
    with pytest.raises(ValueError, match=r"lam must be a positive .* got -1"):
        Implicit(lam=-1)
    with pytest.raises(ValueError, match="damping must be a finite number of at least 0, got -1"):
        Implicit(damping=-1)
