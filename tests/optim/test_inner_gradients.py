"""Inner gradients taken by the optimizer: the similarity loss and Reptile in a user's own loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import GSL, GSLOptimizer, MetaLearner, TaskBatch, TaskOptimizer, metagrad
from fastmeta.adaptation import SGD
from fastmeta.aggregation import AGGREGATIONS, UPGrad
from tests.helpers.problems import MODULES, loss, mlp, tasks
from tests.optim.user_loops import LR


def similarity(params: Any, **options: Any) -> GSLOptimizer:
    return GSLOptimizer(params, torch.optim.SGD, lr=0.1, variant="similarity", **options)


def functional(model: nn.Module, batch: TaskBatch, opt: TaskOptimizer, steps: int = 2) -> None:
    for task in batch:
        with opt.task(scale=1 / len(batch)) as t:
            fast = {n: p for n, p in model.named_parameters() if p.requires_grad}
            for _ in range(steps):
                value = loss(functional_call(model, fast, (task.support_x,)), task.support_y)
                grads = t.inner_gradients(value, fast.values(), allow_unused=True)
                fast = {
                    n: p if g is None else p - LR * g
                    for (n, p), g in zip(fast.items(), grads, strict=True)
                }
            output = functional_call(model, fast, (task.query_x,))
            (loss(output, task.query_y) / len(batch)).backward()


def in_place(model: nn.Module, batch: TaskBatch, opt: TaskOptimizer, steps: int = 2) -> None:
    for task in batch:
        with opt.task(scale=1 / len(batch), inner_lr=LR) as t:
            learner = copy.deepcopy(model)
            params = [p for p in learner.parameters() if p.requires_grad]
            inner = torch.optim.SGD(params, lr=LR)
            for _ in range(steps):
                value = loss(learner(task.support_x), task.support_y)
                grads = t.inner_gradients(value, params, allow_unused=True)
                for p, g in zip(params, grads, strict=True):
                    p.grad = g
                inner.step()
            inner.zero_grad()
            (loss(learner(task.query_x), task.query_y) / len(batch)).backward()
            for p, q in zip(opt.param_groups[0]["params"], learner.parameters(), strict=True):
                p.grad = q.grad


LOOPS = {"functional": functional, "in place": in_place}


def flat(model: nn.Module) -> Tensor:
    params = [p for p in model.parameters() if p.requires_grad]
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params]
    )


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["mlp", "batch norm", "running batch norm", "tied", "unused"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eta": 0.3},
        {"lam_c": 0.7},
        {"lam_d": 0.0, "lam_c": 2.0, "eta": 0.5},
        {"schedule": "linear:4"},
        {"layers": "all"},
        {"layers": "body/full"},
        {"lam_2": 0.4, "lam_c": 0.2},
    ],
    ids=str,
)
def test_meta_gradients_are_those_of_a_learner(kind: str, options: dict, loop: str) -> None:
    module = MODULES[kind]().double()
    if options.get("layers") == "body/full" and kind == "unused":
        pytest.skip("a single layer has no body")
    own, batch = copy.deepcopy(module), tasks(3)
    learner = GSL(module, loss, inner_lr=LR, inner_steps=2, variant="similarity", **options)
    opt = similarity([p for p in own.parameters() if p.requires_grad], **options)
    if "lam_2" in options and loop == "functional":
        with pytest.raises(ValueError, match=r"expected opt\.task\(inner_lr=\.\.\.\)"):
            LOOPS[loop](own, batch, opt)
        return
    for _ in range(2):
        expected, _ = learner.meta_gradient(batch)
        learner.steps_taken = opt.steps_taken + 1
        opt.zero_grad()
        LOOPS[loop](own, batch, opt)
        torch.testing.assert_close(flat(own), expected, rtol=1e-11, atol=1e-14)
        opt.step()
        own.load_state_dict(module.state_dict())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "name", [name for name in AGGREGATIONS if not AGGREGATIONS[name]().needs_losses]
)
def test_with_every_aggregation(name: str, loop: str) -> None:
    module, batch = mlp().double(), tasks(4)
    way = metagrad.GSL(eta=0.5)
    learner = MetaLearner(
        module, loss, adaptation=SGD(LR, 2), metagrad=way, aggregation=AGGREGATIONS[name]()
    )
    torch.manual_seed(3)
    expected, _ = learner.meta_gradient(batch)
    opt = TaskOptimizer(module.parameters(), lr=0.1, metagrad=way, aggregation=AGGREGATIONS[name]())
    torch.manual_seed(3)
    LOOPS[loop](module, batch, opt)
    torch.testing.assert_close(flat(module), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", ["adapted", "inner_gradients"])
@pytest.mark.parametrize("name", ["mean", "upgrad", "agreement"])
def test_reptile(name: str, way: str) -> None:
    module, batch = mlp().double(), tasks(4)
    reptile = metagrad.Reptile(use_query=False)
    learner = MetaLearner(
        module, loss, adaptation=SGD(LR, 3), metagrad=reptile, aggregation=AGGREGATIONS[name]()
    )
    expected, _ = learner.meta_gradient(batch)
    opt = TaskOptimizer(
        module.parameters(), lr=0.1, metagrad=reptile, aggregation=AGGREGATIONS[name]()
    )
    for task in batch:
        with opt.task(scale=1 / 4, inner_lr=LR if way == "inner_gradients" else None) as t:
            fast = dict(module.named_parameters())
            for _ in range(3):
                value = loss(functional_call(module, fast, (task.support_x,)), task.support_y)
                take = t.inner_gradients if way == "inner_gradients" else torch.autograd.grad
                grads = take(value, fast.values())
                fast = {n: p - LR * g for (n, p), g in zip(fast.items(), grads, strict=True)}
            if way == "adapted":
                t.adapted(fast.values(), LR, 3)
    torch.testing.assert_close(flat(module), expected)
    with pytest.raises(RuntimeError, match=r"Reptile needs the displacement .* task 4 has none"):
        functional(module, batch, opt)


def test_momentum_of_the_inner_loop_is_differentiated() -> None:
    model, task = mlp().double(), tasks(1)[0]
    names = [n for n, _ in model.named_parameters()]

    def query(take: Any) -> Tensor:
        fast, momentum = list(model.parameters()), [torch.zeros(())] * 4
        for _ in range(3):
            output = functional_call(model, dict(zip(names, fast, strict=True)), task.support_x)
            grads = take(loss(output, task.support_y), fast)
            momentum = [0.9 * m + g for m, g in zip(momentum, grads, strict=True)]
            fast = [p - LR * m for p, m in zip(fast, momentum, strict=True)]
        output = functional_call(model, dict(zip(names, fast, strict=True)), task.query_x)
        return loss(output, task.query_y)

    def head_only(value: Tensor, fast: list[Tensor]) -> list[Tensor]:
        grads = torch.autograd.grad(value, fast, create_graph=True)
        return [*(g.detach() for g in grads[:2]), *grads[2:]]

    expected = torch.autograd.grad(query(head_only), list(model.parameters()))
    query(similarity(model.parameters()).task().inner_gradients).backward()
    for param, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(param.grad, grad, rtol=1e-12, atol=1e-14)


def test_inner_gradients_may_be_changed_in_place() -> None:
    model, task = mlp(), tasks(1, torch.float32)[0]
    grads = (
        similarity(model.parameters())
        .task()
        .inner_gradients(loss(model(task.support_x), task.support_y))
    )
    for grad in grads:
        grad.mul_(0.5)
    sum(g.square().sum() for g in grads[2:]).backward()
    assert model[1].weight.grad.count_nonzero() > 0


def test_a_rate_of_zero_is_bitwise_the_plain_loop() -> None:
    model, batch = mlp(), tasks(2, torch.float32)
    other = copy.deepcopy(model)
    opt = similarity(model.parameters(), schedule="until:1")
    off = GSLOptimizer(other.parameters(), torch.optim.SGD, lr=0.1, variant="off")
    opt._combination.step = 1
    for net, optimizer in ((model, opt), (other, off)):
        functional(net, batch, optimizer)
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert opt.steps_taken == 2


def test_only_the_head_of_the_support_gradients_keeps_a_graph() -> None:
    model, task = mlp(), tasks(1, torch.float32)[0]
    value = loss(model(task.support_x), task.support_y)
    grads = similarity(model.parameters()).task().inner_gradients(value)
    assert [g.requires_grad for g in grads] == [False, False, True, True]
    value = loss(model(task.support_x), task.support_y)
    plain = TaskOptimizer(model.parameters(), lr=0.1).task().inner_gradients(value)
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(grads, plain, strict=True))


def test_a_similarity_without_effect_is_an_error() -> None:
    model, task = mlp(), tasks(1, torch.float32)[0]
    opt = similarity(model.parameters())
    message = r"no effect on this task.*inner_gradients.*opt\.task\(inner_lr=\.\.\.\)"

    def constant() -> None:
        with opt.task() as t:
            grads = t.inner_gradients(loss(model(task.support_x), task.support_y))
            fast = [p - LR * g.detach() for p, g in zip(model.parameters(), grads, strict=True)]
            sum(p.square().sum() for p in fast).backward()

    with pytest.raises(RuntimeError, match=message):
        constant()
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RuntimeError, match=message), opt.task(inner_lr=LR):
        loss(model(task.query_x), task.query_y).backward()
    with opt.task() as t:  # an evaluation
        t.inner_gradients(loss(model(task.support_x), task.support_y))
    loss(model(task.query_x), task.query_y).backward()
    with pytest.warns(UserWarning, match=r"opt\.task\(inner_lr=\.\.\.\) if its updates are in pl"):
        opt.step()


def test_an_exception_in_the_block_leaves_no_trace() -> None:
    model, batch = mlp(), tasks(1, torch.float32)
    opt = similarity(model.parameters())

    def failing() -> None:
        with opt.task(inner_lr=LR) as t:
            t.inner_gradients(loss(model(batch[0].support_x), batch[0].support_y))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    in_place(model, batch, opt)
    opt.step()


def test_wrong_calls_are_errors() -> None:
    model, task = mlp(), tasks(1, torch.float32)[0]
    value = loss(model(task.support_x), task.support_y)
    opt = similarity(model.parameters())
    with pytest.raises(ValueError, match="expected one parameter for each of the 4 parameters"):
        opt.task().inner_gradients(value, list(model.parameters())[2:])
    with pytest.raises(ValueError, match="in their order and shapes"):
        opt.task().inner_gradients(value, reversed(list(model.parameters())))
    with pytest.raises(RuntimeError, match="does not depend on parameter 0 of 4; pass allow_unus"):
        opt.task().inner_gradients(model[3].weight.sum() + model[3].bias.sum())
    for refused in (
        opt.task(inner_lr=LR),
        TaskOptimizer(model.parameters(), lr=0.1, aggregation=UPGrad()).task(),
    ):
        with pytest.raises(RuntimeError, match="outside of the task's block"):
            refused.inner_gradients(value)
    with pytest.raises(ValueError, match="inner_lr must be positive, got 0"):
        opt.task(inner_lr=0)
    with pytest.raises(ValueError, match="names of layers, got 'classifier'"):
        similarity(model.parameters(), layers="classifier")
    with pytest.raises(TypeError):
        GSLOptimizer(model.parameters(), lr=0.1, variant="correction", layers="head")


def test_parameters_that_are_not_adapted_are_none() -> None:
    model, task = mlp().double(), tasks(1)[0]
    opt = similarity(model.parameters())
    body, head = model[:3], list(model[3].parameters())
    value = loss(nn.functional.linear(body(task.support_x), *head), task.support_y)
    grads = opt.task().inner_gradients(value, [None, None, *head])
    assert grads[:2] == (None, None)
    fast = [p - LR * g for p, g in zip(head, grads[2:], strict=True)]
    loss(nn.functional.linear(body(task.query_x), *fast), task.query_y).backward()
    found = flat(model)
    value = loss(nn.functional.linear(body(task.support_x), *head), task.support_y)
    grads = torch.autograd.grad(value, head, create_graph=True)  # ANIL's exact gradient
    fast = [p - LR * g for p, g in zip(head, grads, strict=True)]
    model.zero_grad()
    loss(nn.functional.linear(body(task.query_x), *fast), task.query_y).backward()
    torch.testing.assert_close(found, flat(model), rtol=1e-12, atol=1e-14)
