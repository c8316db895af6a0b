"""Kernel and ridge heads: limits, ridge regression in weight space, derivatives in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import NTK, ClosedForm, KernelHead, RidgeHead
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact
from tests.helpers.problems import convolution, mlp, tasks


def learner(module: nn.Module, adaptation: ClosedForm, loss=F.mse_loss) -> MetaLearner:
    return MetaLearner(module, loss, adaptation=adaptation, metagrad=Exact(), aggregation=Mean())


def regression() -> TaskBatch:
    x, y = (torch.randn(2, 12, size, dtype=torch.float64) for size in (3, 2))
    return TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])


def network(bias: bool = True) -> nn.Module:
    parts = nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2, bias=bias)
    return nn.Sequential(*parts).double()


def kernel(u: Tensor, v: Tensor, unit: Tensor, widths: Tensor, weights: Tensor) -> Tensor:
    rows = [[((a - b) ** 2).sum() for b in v] for a in u]
    squares = torch.stack([torch.stack(row) for row in rows])
    parts = [
        c * torch.exp(-squares / (2 * s**2 * unit)) for c, s in zip(weights, widths, strict=True)
    ]
    return sum(parts)


def test_a_large_ridge_leaves_the_network() -> None:
    batch, module = regression(), network()
    for kind in (KernelHead, RidgeHead):
        found = learner(module, kind(ridge=1e12)).predict(batch)
        torch.testing.assert_close(found, module(batch.query_x), rtol=0, atol=1e-9)


def test_a_small_ridge_interpolates() -> None:
    batch, module = regression(), network()  # 5 examples, 16 features
    seen = TaskBatch(batch.support_x, batch.support_y, batch.support_x, batch.support_y)
    for kind in (KernelHead, RidgeHead):
        found = learner(module, kind(ridge=1e-10)).predict(seen)
        torch.testing.assert_close(found, batch.support_y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_the_ridge_head_is_ridge_regression_in_weight_space(bias: bool) -> None:
    batch, module = regression(), network(bias)
    model = learner(module, RidgeHead(ridge=0.3))
    for task in batch:
        p, q = (module[:2](x) for x in (task.support_x, task.query_x))
        ridge = 0.3 * (p @ p.T).diagonal().mean()
        left = p.T @ p + ridge * torch.eye(16, dtype=p.dtype)
        change = torch.linalg.solve(left, p.T @ (task.support_y - module(task.support_x)))
        expected = module(task.query_x) + q @ change
        torch.testing.assert_close(model.predict(task), expected, rtol=1e-9, atol=1e-9)
        fast = model.adapt(task.support_x, task.support_y)
        torch.testing.assert_close(fast["2.weight"], module[2].weight + change.T)


def test_the_ridge_head_is_the_ntk_of_the_last_layer() -> None:
    batch, module = regression(), network(bias=False)
    expected = learner(module, RidgeHead(ridge=0.2)).predict(batch)
    module[0].requires_grad_(False)
    found = learner(module, NTK(ridge=0.2)).predict(batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [mlp, lambda: convolution(False)], ids=["mlp", "conv"])
@pytest.mark.parametrize("kind", [KernelHead, RidgeHead])
def test_gradients_are_those_of_plain_autograd(make, kind) -> None:
    module, batch = make().double(), tasks(2)
    model = learner(module, kind(ridge=0.2, scale=3.0), F.cross_entropy)
    rates = model.adaptation.rates
    with torch.no_grad():  # away from equal weights
        for rate in rates:
            rate += 0.2 * torch.randn_like(rate)
    ridge, scale = rates[0].exp(), rates[-1].exp()
    losses = []
    for task in batch:
        p, q = (module[:-1](x) for x in (task.support_x, task.query_x))
        y = F.one_hot(task.support_y, 3).double() - 1 / 3
        residual = y - module[-1](p)
        if kind is RidgeHead:
            k, kq = p @ p.T, q @ p.T
        else:
            apart = [((a - b) ** 2).sum() for i, a in enumerate(p) for b in p[:i]]
            unit = torch.stack(apart).mean()
            widths, weights = rates[1].exp(), rates[2].exp()
            k, kq = (kernel(z, p, unit, widths, weights) for z in (p, q))
        eye = torch.eye(len(p), dtype=p.dtype)
        a = torch.linalg.inv(k + ridge * k.diagonal().mean() * eye) @ residual
        losses.append(F.cross_entropy(scale * (module[-1](q) + kq @ a), task.query_y))
    expected = torch.autograd.grad(
        torch.stack(losses).mean(), [*module.parameters(), *rates], materialize_grads=True
    )
    found, result = model.meta_gradient(batch)
    torch.testing.assert_close(result.query_loss, torch.stack(losses).detach(), rtol=1e-9, atol=0)
    flat = torch.cat([g.flatten() for g in expected])
    assert (found - flat).norm() <= 1e-8 * flat.norm()


@pytest.mark.parametrize("kind", [KernelHead, RidgeHead])
def test_the_order_of_the_support_set_is_irrelevant_and_repetitions_are_no_problem(kind) -> None:
    batch, module = regression(), network()
    batch.support_x[:, 1], batch.support_y[:, 1] = batch.support_x[:, 0], batch.support_y[:, 0]
    order = torch.randperm(5)
    other = TaskBatch(
        batch.support_x[:, order], batch.support_y[:, order], batch.query_x, batch.query_y
    )
    model = learner(module, kind())
    found, again = (model.predict(b) for b in (batch, other))
    torch.testing.assert_close(found, again, rtol=1e-9, atol=1e-9)
    batch.support_x[:] = 1.0  # all alike
    gradient, _ = model.meta_gradient(batch)
    assert gradient.isfinite().all()


def test_the_kernel_does_not_depend_on_the_scale_of_the_features() -> None:
    batch, module = regression(), network()
    model = learner(module, KernelHead())
    before = model.predict(batch)
    with torch.no_grad():
        module[2].weight /= 1000
    scaled = nn.Sequential(module[0], module[1], nn.Flatten(), Scaled(), module[2])
    after = learner(scaled, KernelHead()).predict(batch)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-9)


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1000 * x


def test_networks_without_a_linear_last_layer_are_refused() -> None:
    batch = regression()
    with pytest.raises(ValueError, match=r"last trainable layer is a plain nn.Linear"):
        learner(nn.Sequential(nn.Bilinear(3, 3, 2)).double(), KernelHead()).predict(batch)
    after = nn.Sequential(network(), nn.Tanh())
    with pytest.raises(ValueError, match=r"outputs are not those of one call of '0.2'"):
        learner(after, KernelHead()).predict(batch)
    module = network()
    module[2].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"the bias of '2' is frozen, .* use adaptation.KernelHea"):
        learner(module, RidgeHead()).predict(batch)
    assert learner(module, KernelHead()).predict(batch).isfinite().all()
    for bad in ({"ridge": 0.0}, {"widths": ()}, {"widths": (1.0, -1.0)}, {"scale": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            KernelHead(**bad)
