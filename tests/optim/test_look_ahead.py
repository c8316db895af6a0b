"""Look-ahead: gradients at moved parameters, and what an optimizer makes of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import GSLOptimizer, TaskOptimizer, metagrad
from fastmeta.aggregation import GradientAgreement
from fastmeta.optim import look_ahead
from tests.helpers.problems import MODULES, loss, mlp, tasks
from tests.optim.user_loops import LR, gradients, same

SIZES: dict[str, dict[str, float]] = {"lr": {"lr": LR}, "norm": {"norm": 0.7}}


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def halves() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    (task,) = tasks(1)
    return (task.support_x, task.support_y), (task.query_x, task.query_y)


@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_those_at_the_moved_parameters(size: str) -> None:
    model = mlp().double()
    before = copy.deepcopy(model)
    (x, y), (x_2, y_2) = halves()
    loss(model(x), y).backward()
    params = dict(model.named_parameters())
    grads = {n: p.grad.clone() for n, p in params.items() if p.grad is not None}
    rate = LR if size == "lr" else 0.7 / flat(grads.values()).norm()
    fast = {n: (p - rate * grads[n]).detach().requires_grad_() for n, p in params.items()}
    expected = torch.autograd.grad(
        loss(functional_call(model, fast, (x_2,)), y_2), list(fast.values())
    )
    with look_ahead(model.parameters(), **SIZES[size]):
        loss(model(x_2), y_2).backward()
    for p, first, second in zip(params.values(), grads.values(), expected, strict=True):
        torch.testing.assert_close(p.grad, first + second, rtol=1e-12, atol=1e-14)
    assert same(model, before)


def test_a_step_with_muon() -> None:
    """Only the matrices move, and only they are Muon's."""
    model = mlp()
    other = copy.deepcopy(model)
    (first, second) = [(x.float(), y.float() if y.is_floating_point() else y) for x, y in halves()]
    matrices = [p for p in model.parameters() if p.dim() == 2]
    muon = TaskOptimizer(matrices, torch.optim.Muon, lr=0.02)
    rest = torch.optim.AdamW([p for p in model.parameters() if p.dim() < 2], lr=0.01)
    (loss(model(first[0]), first[1]) / 2).backward()
    with look_ahead(matrices, norm=0.5):
        (loss(model(second[0]), second[1]) / 2).backward()
    muon.step()
    rest.step()

    moved = copy.deepcopy(other)
    params = list(other.parameters())
    grads = torch.autograd.grad(loss(other(first[0]), first[1]) / 2, params)
    norm = flat([g for g in grads if g.dim() == 2]).norm()
    with torch.no_grad():
        for p, g in zip(moved.parameters(), grads, strict=True):
            p.sub_(0.5 / norm * g if p.dim() == 2 else 0)
    later = torch.autograd.grad(loss(moved(second[0]), second[1]) / 2, list(moved.parameters()))
    for p, a, b in zip(params, grads, later, strict=True):
        p.grad = a + b
    torch.optim.Muon([p for p in params if p.dim() == 2], lr=0.02).step()
    torch.optim.AdamW([p for p in params if p.dim() < 2], lr=0.01).step()
    for p, q in zip(model.parameters(), params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)  # Muon iterates in bfloat16


def in_place(model: nn.Module, batch: Any, opt: TaskOptimizer, inner_lr: float | None) -> None:
    for task in batch:
        with opt.task(scale=1 / len(batch), inner_lr=inner_lr) as t:
            grads = t.inner_gradients(loss(model(task.support_x), task.support_y))
            with look_ahead(model.parameters(), grads, lr=LR):
                (loss(model(task.query_x), task.query_y) / len(batch)).backward()


def functional(model: nn.Module, batch: Any, opt: TaskOptimizer) -> None:
    for task in batch:
        with opt.task(scale=1 / len(batch)) as t:
            fast = dict(model.named_parameters())
            value = loss(functional_call(model, fast, (task.support_x,)), task.support_y)
            grads = t.inner_gradients(value, fast.values())
            fast = {n: p - LR * g for (n, p), g in zip(fast.items(), grads, strict=True)}
            output = functional_call(model, fast, (task.query_x,))
            (loss(output, task.query_y) / len(batch)).backward()


OPTIMIZERS: dict[str, tuple[Any, float | None]] = {
    "first order": (lambda p: TaskOptimizer(p, torch.optim.SGD, lr=0.1), None),
    "correction": (
        lambda p: TaskOptimizer(p, torch.optim.SGD, metagrad=metagrad.GSLCorrection(0.3), lr=0.1),
        None,
    ),
    "similarity": (
        lambda p: GSLOptimizer(p, torch.optim.SGD, variant="similarity", eta=0.5, lr=0.1),
        LR,
    ),
    "agreement": (
        lambda p: TaskOptimizer(p, torch.optim.SGD, aggregation=GradientAgreement(), lr=0.1),
        None,
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["mlp", "batch norm"])
def test_parts_of_a_batch_as_tasks(name: str, kind: str) -> None:
    """The same gradients as from fast weights that are tensors of their own."""
    build, inner_lr = OPTIMIZERS[name]
    model, batch = MODULES[kind]().double(), tasks(3)
    other = copy.deepcopy(model)
    in_place(model, batch, build(model.parameters()), inner_lr)
    functional(other, batch, build(other.parameters()))
    found, expected = (gradients(list(m.parameters())) for m in (model, other))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_an_exception_restores_the_parameters() -> None:
    model = mlp().double()
    before, (x, y) = copy.deepcopy(model), halves()[0]
    loss(model(x), y).backward()

    def failing() -> None:
        with look_ahead(model.parameters(), lr=1.0):
            assert not same(model, before)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert same(model, before)


def test_parameters_without_a_gradient_stay_and_zero_gradients_do_not_move() -> None:
    a, b = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2, dtype=torch.bfloat16))
    a.grad = torch.zeros(3)
    with look_ahead([a, b], norm=2.0):
        values = a.clone(), b.clone()
    assert torch.equal(values[0], a)
    assert torch.equal(values[1], b)
    with look_ahead([a, b], [None, torch.ones_like(b)], lr=0.5):
        assert torch.equal(a, values[0])
        assert torch.equal(b, values[1] - 0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "either lr or norm"),
        ({"lr": 1.0, "norm": 1.0}, ValueError, "either lr or norm"),
        ({"lr": 0.0}, ValueError, "lr must be a positive"),
        ({"norm": -1.0}, ValueError, "norm must be a positive"),
        ({"lr": 1.0, "grads": [None]}, ValueError, "each of the 2 parameters"),
        ({"lr": 1.0, "grads": [torch.ones(3), None]}, ValueError, r"got 2 with shapes \[\(3,\)"),
        ({"lr": 1.0, "grads": [None, None]}, RuntimeError, "no parameter has a gradient"),
    ],
)
def test_wrong_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    params = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    if "grads" not in arguments:
        for p in params:
            p.grad = torch.ones(2)
    with pytest.raises(error, match=message), look_ahead(params, **arguments):
        pass
