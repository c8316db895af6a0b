"""Learned inner rates: gradients, training and state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact, FirstOrder, GSLCorrection, MetaGradient, Recursion, Reptile
from tests.helpers.problems import MODULES, loss, mlp, tasks

LR = 0.3


def learner(
    module: nn.Module, metagrad: MetaGradient, per: str, steps: int = 2, per_step: bool = False
) -> MetaLearner:
    return MetaLearner(
        module,
        loss,
        adaptation=MetaSGD(LR, steps, per=per, per_step=per_step),
        metagrad=metagrad,
        aggregation=Mean(),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.02),
    )


def reference_gradients(
    module: nn.Module, batch: TaskBatch, per: str, per_step: bool, first_order: bool
) -> Tensor:
    """Algorithm 1 of Meta-SGD on plain autograd, with separate rates for each step."""
    params = {n: p.detach().requires_grad_() for n, p in module.named_parameters()}
    steps = [
        [
            torch.full(p.shape if per == "element" else (), LR, dtype=p.dtype, requires_grad=True)
            for p in params.values()
        ]
        for _ in range(2 if per_step else 1)
    ]
    total = 0
    for task in batch:
        fast = dict(params)
        for k in range(2):
            rates = steps[min(k, len(steps) - 1)]
            value = loss(functional_call(module, fast, (task.support_x,)), task.support_y)
            grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
            if first_order:
                grads = [g.detach() for g in grads]
            fast = {n: p - r * g for (n, p), r, g in zip(fast.items(), rates, grads, strict=True)}
        total = total + loss(functional_call(module, fast, (task.query_x,)), task.query_y)
    found = torch.autograd.grad(total / len(batch), list(params.values()), retain_graph=True)
    of_rates = [torch.autograd.grad(total / len(batch), r, retain_graph=True) for r in steps]
    rows = [torch.stack(r).flatten() for r in zip(*of_rates, strict=True)]
    return torch.cat([*(g.flatten() for g in found), *rows])


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("per", ["element", "tensor"])
@pytest.mark.parametrize("metagrad", [Exact, Recursion, FirstOrder])
def test_gradients_are_those_of_plain_autograd(metagrad, per: str, per_step: bool) -> None:
    module, batch = mlp().double(), tasks()
    expected = reference_gradients(module, batch, per, per_step, metagrad is FirstOrder)
    found, _ = learner(module, metagrad(), per, per_step=per_step).meta_gradient(batch)
    assert (found - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("per", ["element", "tensor"])
def test_further_steps_have_the_rates_of_the_last(per: str) -> None:
    module, batch = mlp().double(), tasks(1)
    model = learner(module, Exact(), per, per_step=True)
    with torch.no_grad():
        for rate in model.adaptation.rates:
            assert len(rate) == 2
            rate[0], rate[1] = 0.1, 0.2
    fast = dict(module.named_parameters())
    for lr in (0.1, 0.2, 0.2, 0.2):
        value = loss(functional_call(module, fast, (batch[0].support_x,)), batch[0].support_y)
        grads = torch.autograd.grad(value, list(fast.values()))
        fast = {n: p - lr * g for (n, p), g in zip(fast.items(), grads, strict=True)}
    found = model.adapt(batch[0].support_x, batch[0].support_y, 4)
    torch.testing.assert_close(found, {n: p.detach() for n, p in fast.items()})


def test_rates_per_step_without_inner_steps_in_training() -> None:
    model = learner(mlp(), Exact(), "tensor", steps=0, per_step=True)
    model.step(tasks(2, torch.float32))
    assert model.predict(tasks(2, torch.float32), 3).isfinite().all()


@pytest.mark.parametrize("name", ["frozen", "unused", "tied"])
def test_modules_with_unusual_parameters(name: str) -> None:
    batch = tasks(2, torch.float32)
    for metagrad in (Exact(), Recursion(), FirstOrder(), GSLCorrection(), Reptile()):
        model = learner(MODULES[name](), metagrad, "element")
        assert model.step(batch).query_loss.isfinite().all()


@pytest.mark.parametrize(
    ("metagrad", "moves"), [(Recursion, True), (GSLCorrection, True), (Reptile, False)]
)
def test_which_meta_gradients_train_the_rates(metagrad, moves: bool) -> None:
    model = learner(mlp(), metagrad(), "tensor")
    model.step(tasks(3, torch.float32))
    assert any(rate != torch.tensor(LR) for rate in model.adaptation.rates) == moves


def test_rates_are_saved_with_the_learner() -> None:
    batches = [tasks(2, torch.float32) for _ in range(4)]
    module = mlp()
    whole, half = (learner(copy.deepcopy(module), Recursion(), "element") for _ in range(2))
    for batch in batches:
        whole.step(batch)
    for batch in batches[:2]:
        half.step(batch)
    resumed = learner(mlp(), Recursion(), "element")
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in batches[2:]:
        resumed.step(batch)
    for one, other in zip(whole.adaptation.rates, resumed.adaptation.rates, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(whole.predict(batches[0]), resumed.predict(batches[0]))
