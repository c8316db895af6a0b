"""ALFA: generated rates and weight decay, against plain autograd and its limits."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import ALFA, SGD, Adaptation, LayerPattern, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact, FirstOrder, MetaGradient, Recursion
from tests.helpers.problems import loss, mlp, tasks

LR = 0.3


def learner(module: nn.Module, adaptation: Adaptation, metagrad: MetaGradient) -> MetaLearner:
    return MetaLearner(
        module,
        loss,
        adaptation=adaptation,
        metagrad=metagrad,
        aggregation=Mean(),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.02),
    )


def stirred(model: MetaLearner) -> MetaLearner:
    """With rates away from their start, so that every part of the network matters."""
    with torch.no_grad():
        for rate in model.adaptation.rates:
            rate += 0.3 * torch.randn_like(rate) * rate.abs().mean()
    return model


def reference(module: nn.Module, batch: TaskBatch, rates: list[Tensor], first: bool) -> Tensor:
    """The update of the paper, written with modules and autograd.

    With ``first``, inner gradients are constants for the rates, and the gradient of the parameters
    is that at the fast weights, as in FOMAML.
    """
    params = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    w1, b1, w2, b2, alpha, beta = rates = [r.detach().clone().requires_grad_() for r in rates]
    size, total = len(params), torch.zeros((), dtype=torch.float64)
    at_fast = [torch.zeros_like(p) for p in params.values()]
    for task in batch:
        fast = dict(params)
        for k in range(2):
            value = loss(functional_call(module, fast, (task.support_x,)), task.support_y)
            grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
            if first:
                grads = [g.detach() for g in grads]
            tau = torch.stack(
                [*(p.mean() for p in fast.values()), *(g.detach().mean() for g in grads)]
            )
            a, b = (F.relu(tau @ w1.mT + b1) @ w2.mT + b2).split(size)
            fast = {
                n: (1 - b[i] * beta[k, i]) * p - a[i] * alpha[k, i] * g
                for i, ((n, p), g) in enumerate(zip(fast.items(), grads, strict=True))
            }
        value = loss(functional_call(module, fast, (task.query_x,)), task.query_y) / len(batch)
        grads = torch.autograd.grad(value, list(fast.values()), retain_graph=True)
        at_fast = [a + g for a, g in zip(at_fast, grads, strict=True)]
        total = total + value
    found = torch.autograd.grad(total, [*params.values(), *rates])
    if first:
        found = [*at_fast, *found[size:]]
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("metagrad", [Exact, Recursion, FirstOrder])
def test_gradients_are_those_of_plain_autograd(metagrad) -> None:
    module, batch = mlp().double(), tasks()
    model = stirred(learner(module, ALFA(LR, 2, 0.1, start="paper"), metagrad()))
    expected = reference(module, batch, list(model.adaptation.rates), metagrad is FirstOrder)
    found, _ = model.meta_gradient(batch)
    assert (found - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("rates", ["learned", "one number"])
def test_a_network_that_is_constant_is_gradient_descent(rates: str) -> None:
    module, batch = mlp().double(), tasks()
    ours = learner(module, ALFA(LR, 2, weight_decay=0), Exact())
    plain = MetaSGD(LR, 2, per="tensor", per_step=True) if rates == "learned" else SGD(LR, 2)
    theirs = learner(module, plain, Exact())
    if rates == "learned":
        with torch.no_grad():
            alpha = ours.adaptation.rates[-2]
            alpha += 0.1 * torch.rand_like(alpha)
            for rate, column in zip(theirs.adaptation.rates, alpha.unbind(1), strict=True):
                rate.copy_(column)
    assert torch.equal(ours.predict(batch), theirs.predict(batch))
    size = sum(p.numel() for p in module.parameters())
    found, expected = (m.meta_gradient(batch)[0][:size] for m in (ours, theirs))
    # tau depends on the parameters, but the network does not depend on tau.
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_the_identity_start_is_gradient_descent_with_weight_decay() -> None:
    batch, module = tasks(), mlp().double()
    model = learner(module, ALFA(LR, 3, weight_decay=0.2), Exact())
    plain = learner(module, SGD(LR, 3, weight_decay=0.2), Exact())
    torch.testing.assert_close(model.predict(batch), plain.predict(batch))


def test_start_of_the_paper_is_random_and_from_torchs_generator() -> None:
    params, names = [torch.randn(3, 2), torch.randn(2)], ["a", "b"]
    torch.manual_seed(5)
    found, again = ALFA(LR, start="paper"), ALFA(LR, start="paper")
    found.bind(params, names)
    torch.manual_seed(5)
    again.bind(params, names)
    hidden, last = found.rates[0], found.rates[2]
    assert all(torch.equal(a, b) for a, b in zip(found.rates, again.rates, strict=True))
    for weight in (hidden, last):
        assert weight.shape == (4, 4)
        assert weight.abs().max() <= 0.5  # torch's default: 1 / sqrt(fan in)
        assert weight.std() > 0
    assert [r.shape for r in found.rates[-2:]] == [(1, 2)] * 2
    torch.testing.assert_close(found.rates[-1], found.rates[-2] * 5e-4)


def test_frozen_layers_do_not_move_and_do_not_matter() -> None:
    module, batch = mlp().double(), tasks(1)
    model = stirred(learner(module, LayerPattern(ALFA(LR, 2, 0.1), "head"), Exact()))
    names = [n for n, _ in module.named_parameters()]
    task = batch[0]
    fast = model.adapt(task.support_x, task.support_y)
    for i, (name, param) in enumerate(module.named_parameters()):
        assert torch.equal(fast[name], param) == (i < 2)
    # The columns of tau that belong to the frozen layer have no effect.
    with torch.no_grad():
        for first in (0, len(names)):
            model.adaptation.rates[0][:, first : first + 2] += 10
    again = model.adapt(task.support_x, task.support_y)
    assert all(torch.equal(again[n], fast[n]) for n in names)
    # Nor has any of its other numbers a gradient.
    *_, alpha, _ = model.adaptation.rates
    model.backward(batch)
    assert (alpha.grad[:, :2] == 0).all()
    assert (alpha.grad[:, 2:] != 0).all()


def test_parameters_frozen_later_are_left_out_as_by_a_pattern() -> None:
    module, batch = mlp().double(), tasks()
    model = stirred(learner(module, ALFA(LR, 2, 0.1), Exact()))
    pattern = learner(module, LayerPattern(ALFA(LR, 2, 0.1), "head"), Exact())
    with torch.no_grad():
        for mine, other in zip(model.adaptation.rates, pattern.adaptation.rates, strict=True):
            other.copy_(mine)
    module[1].requires_grad_(False)
    found = model.predict(batch)
    model.backward(batch)
    assert module[1].weight.grad is None
    module[1].requires_grad_(True)
    torch.testing.assert_close(found, pattern.predict(batch), rtol=1e-12, atol=1e-12)
    pattern_rates = pattern.adaptation.rates
    grads = [rate.grad.clone() for rate in model.adaptation.rates]
    pattern.backward(batch)
    for grad, rate in zip(grads, pattern_rates, strict=True):
        torch.testing.assert_close(grad, rate.grad, rtol=1e-10, atol=1e-12)


def test_longer_inner_loops_have_the_last_steps_rates_and_a_warning() -> None:
    batch = tasks(1)
    model = stirred(learner(mlp().double(), ALFA(LR, 2, 0.1), Exact()))
    longer = learner(copy.deepcopy(model.module), ALFA(LR, 3, 0.1), Exact())
    with torch.no_grad():
        for rate, long in zip(model.adaptation.rates, longer.adaptation.rates, strict=True):
            long.copy_(torch.cat([rate, rate[-1:]]) if len(rate) == 2 else rate)
    with pytest.warns(UserWarning, match="built for 2 inner steps"):
        found = model.predict(batch, steps=3)
    assert torch.equal(found, longer.predict(batch))


def test_a_resumed_run_takes_the_same_steps() -> None:
    batches, module = [tasks(2, torch.float32) for _ in range(4)], mlp()
    whole, half = (learner(copy.deepcopy(module), ALFA(LR, 2), Exact()) for _ in range(2))
    half.load_state_dict(copy.deepcopy(whole.state_dict()))
    for batch in batches:
        whole.step(batch)
    for batch in batches[:2]:
        half.step(batch)
    resumed = learner(mlp(), ALFA(LR, 2, start="paper"), Exact())
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in batches[2:]:
        resumed.step(batch)
    before = ALFA(LR, 2)
    before.bind(list(module.parameters()), [""] * 4)
    for one, other, start in zip(
        whole.adaptation.rates, resumed.adaptation.rates, before.rates, strict=True
    ):
        assert torch.equal(one, other)
        assert not torch.equal(one, start)  # every part is trained
    assert torch.equal(whole.predict(batches[0]), resumed.predict(batches[0]))


def test_one_alfa_per_network() -> None:
    adaptation = ALFA(LR)
    learner(mlp(), adaptation, Exact())
    with pytest.raises(ValueError, match="already has the rates of another network"):
        learner(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), adaptation, Exact())
    with pytest.raises(ValueError, match="start must be one of identity, paper"):
        ALFA(LR, start="zero")
