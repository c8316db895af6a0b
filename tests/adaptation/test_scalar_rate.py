"""One learned rate with a step of its own (Robust MAML), against plain autograd and its limits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adaptation, Clipped, Groups, LayerPattern, ScalarRate
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact, FirstOrder, MetaGradient, Recursion
from tests.helpers.problems import loss, mlp, tasks

LR, STEPS = 0.3, 2


def learner(module: nn.Module, adaptation: Adaptation, metagrad: MetaGradient) -> MetaLearner:
    return MetaLearner(
        module,
        loss,
        adaptation=adaptation,
        metagrad=metagrad,
        aggregation=Mean(),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.02),
    )


def reference(module: nn.Module, batch: TaskBatch, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Meta-gradient of parameters and rate, and the first-order one of the rate."""
    params = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    rate = torch.tensor(LR, dtype=torch.float64, requires_grad=True)
    total, first = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for task in batch:
        fast, inner = dict(params), []
        for _ in range(steps):
            value = loss(functional_call(module, fast, (task.support_x,)), task.support_y)
            grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
            inner.append(grads)
            fast = {n: p - rate * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        value = loss(functional_call(module, fast, (task.query_x,)), task.query_y)
        at_fast = torch.autograd.grad(value, list(fast.values()), retain_graph=True)
        for grads in inner:  # -<g_q, sum_k g_k>
            first -= sum((q * g).sum() for q, g in zip(at_fast, grads, strict=True)).detach()
        total = total + value / len(batch)
    *of_params, of_rate = torch.autograd.grad(total, [*params.values(), rate])
    return torch.cat([g.flatten() for g in of_params]), of_rate, first / len(batch)


@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("metagrad", [Exact, Recursion, FirstOrder])
def test_gradients_are_those_of_plain_autograd(metagrad, steps: int) -> None:
    module, batch = mlp().double(), tasks()
    of_params, of_rate, first = reference(module, batch, steps)
    found, _ = learner(module, ScalarRate(LR, steps), metagrad()).meta_gradient(batch)
    if metagrad is FirstOrder:
        torch.testing.assert_close(found[-1], first, rtol=1e-9, atol=1e-12)
    else:
        torch.testing.assert_close(found[:-1], of_params, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found[-1], of_rate, rtol=1e-9, atol=1e-12)
    if steps == 1:  # no second derivatives in the rate's gradient
        torch.testing.assert_close(found[-1], first, rtol=1e-9, atol=1e-12)


def wrapped(adaptation: ScalarRate, how: str) -> Adaptation:
    if how == "pattern":
        return LayerPattern(adaptation, "full")
    if how == "clipped":
        return Clipped(adaptation, 1e6)
    return Groups({"*": adaptation}) if how == "groups" else adaptation


@pytest.mark.parametrize("how", ["alone", "pattern", "clipped", "groups"])
def test_the_rate_has_its_own_step(how: str) -> None:
    module, batch = mlp().double(), tasks()
    *_, of_rate, _ = reference(module, batch, STEPS)
    model = learner(module, wrapped(ScalarRate(LR, STEPS), how), Exact())
    (rate,) = model.adaptation.rates
    optimized = [p for group in model.optimizer.param_groups for p in group["params"]]
    assert [*map(id, optimized)] == [*map(id, module.parameters())]
    model.backward(batch)
    assert rate == LR
    model.step(batch)
    torch.testing.assert_close(rate.detach(), LR - LR * of_rate, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bound", ["min_lr", "max_lr"])
def test_the_rate_is_clipped(bound: str) -> None:
    module, batch = mlp().double(), tasks()
    *_, of_rate, _ = reference(module, batch, STEPS)
    towards = (bound == "max_lr") != bool(of_rate > 0)  # else another one of the losses' sign
    limits = {"min_lr": LR, "max_lr": LR}
    other = "max_lr" if bound == "min_lr" else "min_lr"
    limits[other] = 10.0 if other == "max_lr" else 1e-6
    model = learner(module, ScalarRate(LR, STEPS, hyper_lr=1e3, **limits), Exact())
    model.step(batch)
    expected = LR if towards else limits[other]
    assert model.adaptation.rates[0].item() == pytest.approx(expected)


def test_without_a_hyper_rate_it_is_gradient_descent() -> None:
    batches, module = [tasks() for _ in range(3)], mlp().double()
    ours = learner(copy.deepcopy(module), ScalarRate(LR, STEPS, hyper_lr=0), Exact())
    theirs = learner(module, SGD(LR, STEPS), Exact())
    for batch in batches:
        ours.step(batch)
        theirs.step(batch)
    assert ours.adaptation.rates[0] == LR
    found, expected = ours.module.state_dict(), theirs.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


def test_parameters_frozen_later_leave_the_rate_learned() -> None:
    module, batch = mlp().double(), tasks()
    model = learner(module, ScalarRate(LR, STEPS), Exact())
    before = module[1].weight.clone()
    module[1].requires_grad_(False)
    model.step(batch)
    assert torch.equal(module[1].weight, before)
    assert model.adaptation.rates[0] != LR


def test_a_resumed_run_takes_the_same_steps() -> None:
    batches, module = [tasks(2, torch.float32) for _ in range(4)], mlp()
    whole, half = (learner(copy.deepcopy(module), ScalarRate(LR, STEPS), Exact()) for _ in "12")
    for batch in batches:
        whole.step(batch)
    for batch in batches[:2]:
        half.step(batch)
    resumed = learner(mlp(), ScalarRate(LR, STEPS), Exact())
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    resumed = copy.deepcopy(resumed)  # a copy steps its own rate
    for batch in batches[2:]:
        resumed.step(batch)
    assert torch.equal(whole.adaptation.rates[0], resumed.adaptation.rates[0])
    assert whole.adaptation.rates[0] != half.adaptation.rates[0]
    assert torch.equal(whole.predict(batches[0]), resumed.predict(batches[0]))


def test_rates_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lr must be a number in \[1e-06, 1.0\], got 2"):
        ScalarRate(2.0)
    with pytest.raises(ValueError, match="hyper_lr must be a finite number of at least 0, got -1"):
        ScalarRate(0.1, hyper_lr=-1)
    with pytest.raises(RuntimeError, match=r"call bind\(params, names\)"):
        ScalarRate(0.1).update(0, [torch.zeros(1)], [torch.zeros(1)], [])
