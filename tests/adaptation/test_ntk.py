"""Meta-RKHS-II: against gradient descent, least squares and the formula of the paper."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import NTK
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact
from tests.helpers.problems import MODULES, tasks

INF = math.inf


def learner(module: nn.Module, adaptation: NTK, loss=F.mse_loss) -> MetaLearner:
    return MetaLearner(module, loss, adaptation=adaptation, metagrad=Exact(), aggregation=Mean())


def regression(inputs: int = 3, outputs: int = 2) -> TaskBatch:
    x = torch.randn(2, 12, inputs, dtype=torch.float64)
    y = torch.randn(2, 12, outputs, dtype=torch.float64)
    return TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])


def network(inputs: int = 3, outputs: int = 2) -> nn.Module:
    parts = nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs)
    return nn.Sequential(*parts).double()


def formula(
    module: nn.Module, x: Tensor, y: Tensor, query: Tensor, time: float, ridge: float
) -> Tensor:
    """The equation of the paper with `H(x, X)` in full, differentiable in the parameters."""
    params = {n: p for n, p in module.named_parameters() if p.requires_grad}

    def outputs(z: Tensor) -> Tensor:
        buffers = {n: b.clone() for n, b in module.named_buffers()}
        return functional_call(module, {**params, **buffers}, z)

    def jacobian(f: Tensor) -> Tensor:
        rows = [
            torch.autograd.grad(
                o,
                list(params.values()),
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            for o in f.flatten()
        ]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])

    fx, fq = outputs(x), outputs(query)
    jx, jq = jacobian(fx), jacobian(fq)
    h = jx @ jx.T
    eye = torch.eye(len(h), dtype=h.dtype)
    unit = h.diagonal().mean().detach()
    inverse = torch.linalg.inv(h + (ridge * unit if time == INF else 0) * eye)
    decay = 0 if time == INF else torch.linalg.matrix_exp(-time * h)
    residual = (y - fx).flatten()
    return fq + (jq @ jx.T @ inverse @ (eye - decay) @ residual).view_as(fq)


def test_a_linear_model_at_infinite_time_is_the_nearest_least_squares_solution() -> None:
    batch, module = regression(inputs=8), nn.Linear(8, 2, bias=False).double()
    x, y, query = batch.support_x[0], batch.support_y[0], batch.query_x[0]
    weight = module.weight.T + torch.linalg.pinv(x) @ (y - module(x))
    found = learner(module, NTK(ridge=0)).predict(batch[0])
    torch.testing.assert_close(found, query @ weight, rtol=1e-9, atol=1e-9)


def test_finite_time_is_that_of_small_steps_of_gradient_descent() -> None:
    batch, module = regression(), nn.Linear(3, 2).double()
    x, y, query, steps, time = batch.support_x[0], batch.support_y[0], batch.query_x[0], 10_000, 0.7
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    for _ in range(steps):
        error = x @ weight.T + bias - y
        weight -= time / steps * error.T @ x
        bias -= time / steps * error.sum(0)
    found = learner(module, NTK(time)).predict(batch[0])
    torch.testing.assert_close(found, query @ weight.T + bias, rtol=1e-3, atol=1e-3)


def test_limits_of_time() -> None:
    batch, module = regression(), network()
    at_zero = learner(module, NTK(time=1e-13)).predict(batch)
    torch.testing.assert_close(at_zero, module(batch.query_x), rtol=0, atol=1e-9)
    seen = TaskBatch(batch.support_x, batch.support_y, batch.support_x, batch.support_y)
    at_infinity = learner(module, NTK(ridge=0)).predict(seen)
    torch.testing.assert_close(at_infinity, batch.support_y, rtol=0, atol=1e-6)
    errors = [
        F.mse_loss(learner(module, NTK(time)).predict(seen), seen.query_y).item()
        for time in (0.01, 0.1, 1.0, INF)
    ]
    assert errors == sorted(errors, reverse=True)  # the flow descends


@pytest.mark.parametrize("time", [0.3, INF])
def test_repeated_support_points_are_no_problem(time: float) -> None:
    batch, module = regression(), network()
    for part in (batch.support_x, batch.support_y):
        part[:, 1] = part[:, 0]
    gradient, result = learner(module, NTK(time)).meta_gradient(batch)
    assert gradient.isfinite().all()
    assert result.query_loss.isfinite().all()


@pytest.mark.parametrize("time", [0.3, INF])
def test_the_order_of_the_support_set_is_irrelevant(time: float) -> None:
    batch, module = regression(), network()
    order = torch.randperm(5)
    other = TaskBatch(
        batch.support_x[:, order], batch.support_y[:, order], batch.query_x, batch.query_y
    )
    found, again = (learner(module, NTK(time)).predict(b) for b in (batch, other))
    torch.testing.assert_close(found, again, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("time", [0.3, INF])
@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_those_of_plain_autograd(name: str, time: float) -> None:
    module, batch = MODULES[name]().double(), tasks(2)
    model = learner(module, NTK(time, ridge=0.01, scale=3.0), F.cross_entropy)
    (log_scale,) = model.adaptation.rates
    losses = []
    for task in batch:
        one_hot = F.one_hot(task.support_y, 3).double()
        f = formula(module, task.support_x, one_hot, task.query_x, time, ridge=0.01)
        losses.append(F.cross_entropy(log_scale.exp() * f, task.query_y))
    trained = [p for p in module.parameters() if p.requires_grad]
    expected = torch.autograd.grad(
        torch.stack(losses).mean(), [*trained, log_scale], materialize_grads=True
    )
    flat = torch.cat([g.flatten() for g in expected])
    found, result = model.meta_gradient(batch)
    torch.testing.assert_close(result.query_loss, torch.stack(losses).detach(), rtol=1e-9, atol=0)
    assert (found - flat).norm() <= 1e-8 * flat.norm()


def test_regression_has_no_scale() -> None:
    batch, module = regression(), network()
    found, other = (learner(module, NTK(scale=scale)).predict(batch) for scale in (1.0, 7.0))
    assert torch.equal(found, other)
    expected = formula(
        module, batch.support_x[0], batch.support_y[0], batch.query_x[0], INF, ridge=1e-3
    )
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-9, atol=1e-9)


def test_float32_and_autocast_agree_with_float64() -> None:
    double, module = regression(), network()
    exact = learner(module, NTK(0.3)).predict(double)
    single = TaskBatch(
        double.support_x.float(), double.support_y.float(), double.query_x.float(), double.query_y
    )
    found = learner(module.float(), NTK(0.3)).predict(single)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    low = MetaLearner(
        module,
        F.mse_loss,
        adaptation=NTK(0.3),
        metagrad=Exact(),
        aggregation=Mean(),
        autocast=torch.bfloat16,
    ).predict(single)
    assert (low.double() - exact).norm() < 0.1 * exact.norm()


def test_arguments_and_targets_are_checked() -> None:
    for bad in ({"time": 0.0}, {"time": -1.0}, {"ridge": -1e-3}, {"scale": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            NTK(**bad)
    batch, model = regression(), learner(network(), NTK())
    wrong = TaskBatch(batch.support_x, batch.support_y[..., 0], batch.query_x, batch.query_y)
    with pytest.raises(ValueError, match=r"outputs \(5, 2\) to targets: .*; got \(5,\) torch.flo"):
        model.predict(wrong)
