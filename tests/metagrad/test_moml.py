"""MOML: memories of the tasks' fast weights, against plain loops and its limits."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.learners import build
from fastmeta.metagrad import (
    MOML,
    Exact,
    FirstOrder,
    Leap,
    MetaGradient,
    MultiStep,
    Recursion,
    Reptile,
)
from tests.helpers.nonfinite import corrupt
from tests.helpers.problems import loss, mlp, tasks

LR, OUTER, ALL = 0.3, 0.2, 5
Params = dict[str, Tensor]


def learner(module: nn.Module, metagrad: MetaGradient, lr: float = LR) -> MetaLearner:
    return MetaLearner(
        module,
        loss,
        adaptation=SGD(lr, 2),
        metagrad=metagrad,
        aggregation=Mean(),
        optimizer=lambda p: torch.optim.SGD(p, OUTER),
        non_finite="skip",
        engine="loop",
    )


def drawn(*ids: int, dtype: torch.dtype = torch.float64) -> TaskBatch:
    """A meta-batch of the tasks with these ids."""
    return replace(tasks(len(ids), dtype), ids=torch.tensor(ids)[:, None])


def memories(model: MetaLearner) -> dict[str, Tensor]:
    state = model.state_dict()["metagrad"]
    return {name: value for name, value in state.items() if name.startswith("moml/")}


BATCHES = [(0, 1, 2), (3, 1, 4), (0, 4, 2), (1, 2, 3)]


@pytest.mark.parametrize(
    ("form", "inner", "plain"),
    [("code", None, FirstOrder()), ("paper", None, Exact()), ("paper", Recursion(), Recursion())],
)
def test_without_memory_it_is_the_inner_meta_gradient(form: Any, inner, plain) -> None:
    module = mlp().double()
    ours = learner(copy.deepcopy(module), MOML(inner, beta=1, form=form))
    theirs = learner(module, plain)
    for ids in BATCHES:
        batch = drawn(*ids)
        found, result = ours.meta_gradient(batch)
        expected, reference = theirs.meta_gradient(batch)
        assert torch.equal(found, expected)
        assert torch.equal(result.query_loss, reference.query_loss)
        ours.step(batch)
        theirs.step(batch)


def inner_loop(module: nn.Module, params: Params, x: Tensor, y: Tensor) -> Params:
    fast = params
    for _ in range(2):
        value = loss(functional_call(module, fast, (x,)), y)
        grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
        fast = {n: p - LR * g for (n, p), g in zip(fast.items(), grads, strict=True)}
    return fast


def reference(
    module: nn.Module, batches: list[TaskBatch], beta: float, form: str, version: int, all_: bool
) -> tuple[Params, dict[int, Params]]:
    """Parameters and memories after training by the equations, with dictionaries."""
    theta = {n: p.detach().clone() for n, p in module.named_parameters()}
    memory: dict[int, Params] = {}
    for batch in batches:
        step = {n: torch.zeros_like(p) for n, p in theta.items()}
        new = {}
        for i, task in enumerate(batch):
            start = {n: p.clone().requires_grad_() for n, p in theta.items()}
            fast = inner_loop(module, start, task.support_x, task.support_y)
            key = int(batch.ids[i])
            before = memory.get(key, {n: f.detach() for n, f in fast.items()})
            factor = ALL / len(batch) if version == 2 else 1
            target = {n: theta[n] + factor * (fast[n].detach() - theta[n]) for n in theta}
            u = {n: (1 - beta) * before[n] + beta * target[n] for n in theta}
            new[key] = u
            point = {n: p.clone().requires_grad_() for n, p in u.items()}
            value = loss(functional_call(module, point, (task.query_x,)), task.query_y)
            grads = torch.autograd.grad(value, list(point.values()))
            if form == "paper":
                grads = torch.autograd.grad(list(fast.values()), list(start.values()), grads)
            else:
                grads = [beta * g for g in grads]
            for n, g in zip(theta, grads, strict=True):
                step[n] += g / len(batch)
        if all_:
            for key in set(memory) - set(new):
                memory[key] = {n: (1 - beta) * u + beta * theta[n] for n, u in memory[key].items()}
        memory |= new
        theta = {n: p - OUTER * step[n] for n, p in theta.items()}
    return theta, memory


@pytest.mark.parametrize(
    ("form", "version", "move_all"),
    [("code", 1, False), ("paper", 1, False), ("code", 2, False), ("code", 2, True)],
)
def test_steps_are_those_of_the_equations(form: Any, version: Any, move_all: bool) -> None:
    module, batches = mlp().double(), [drawn(*ids) for ids in BATCHES]
    expected, of_tasks = reference(module, batches, 0.3, form, version, move_all)
    model = learner(module, MOML(None, 0.3, form, version, ALL, move_all))
    for batch in batches:
        model.step(batch)
    for name, param in module.named_parameters():
        torch.testing.assert_close(param.detach(), expected[name], rtol=1e-9, atol=1e-12)
    found = memories(model)
    assert {*found} == {f"moml/{key}" for key in of_tasks}
    for key, u in of_tasks.items():
        flat = torch.cat([part.flatten() for part in u.values()])
        torch.testing.assert_close(found[f"moml/{key}"], flat, rtol=1e-9, atol=1e-12)


def test_without_adaptation_memories_are_averages_of_the_initialisation() -> None:
    module = mlp().double()
    model = learner(module, MOML(beta=0.25), lr=1e-300)
    average: Tensor | None = None
    for _ in range(4):
        theta = torch.cat([p.detach().flatten() for p in module.parameters()])
        average = theta if average is None else 0.75 * average + 0.25 * theta
        model.step(drawn(7, 8))
        torch.testing.assert_close(memories(model)["moml/7"], average, rtol=1e-12, atol=1e-14)


def test_memories_of_other_tasks_and_of_left_out_ones_do_not_change() -> None:
    model = learner(mlp().double(), MOML())
    model.step(drawn(0, 1, 2))
    before = memories(model)
    model.step(corrupt(drawn(1, 2), 0))
    after = memories(model)
    assert torch.equal(after["moml/0"], before["moml/0"])
    assert torch.equal(after["moml/1"], before["moml/1"])
    assert not torch.equal(after["moml/2"], before["moml/2"])


def test_a_task_twice_in_a_meta_batch_has_the_mean_of_both() -> None:
    batch, module = drawn(3, 5, 3), mlp().double()
    model = learner(copy.deepcopy(module), MOML())
    model.meta_gradient(batch)
    alone = []
    for i in (0, 2):
        single = learner(copy.deepcopy(module), MOML())
        single.meta_gradient(batch.part(i, i + 1))
        alone.append(memories(single)["moml/3"])
    torch.testing.assert_close(memories(model)["moml/3"], (alone[0] + alone[1]) / 2)


def test_a_resumed_run_takes_the_same_steps() -> None:
    module, batches = mlp(), [drawn(*ids, dtype=torch.float32) for ids in BATCHES]
    whole, half = (learner(copy.deepcopy(module), MOML(version=2)) for _ in range(2))
    for batch in batches:
        whole.step(batch)
    for batch in batches[:2]:
        half.step(batch)
    resumed = learner(mlp(), MOML(version=2))
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in batches[2:]:
        resumed.step(batch)
    one, other = memories(whole), memories(resumed)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(whole.predict(batches[0]), resumed.predict(batches[0]))


def test_by_name() -> None:
    options = {"of": "recursion", "form": "paper", "beta": 0.4, "graphs": 1}
    model = build("moml", mlp(), loss, inner_lr=LR, metagrad_options=options)
    assert isinstance(model.metagrad, MOML)
    assert isinstance(model.metagrad.inner, Recursion)
    assert model.metagrad.beta == 0.4
    paper = build("moml", mlp(), loss, inner_lr=LR, metagrad_options={"form": "paper"})
    assert isinstance(paper.metagrad.inner, Exact)


def test_what_it_cannot_do_is_refused() -> None:
    module = mlp().double()
    with pytest.raises(ValueError, match=r"expected a TaskBatch with ids \(T, m\)"):
        learner(module, MOML()).step(replace(drawn(0, 1), ids=None))
    with pytest.raises(ValueError, match=r"has seen 3 different tasks, .* at most max_tasks=2"):
        learner(module, MOML(max_tasks=2)).step(drawn(0, 1, 2))
    for inner in (Reptile(), Leap()):
        with pytest.raises(ValueError, match=f"got {type(inner).__name__}"):
            MOML(inner)
    with pytest.raises(ValueError, match=r"metagrad.MultiStep did 2 times"):
        learner(module, MOML(MultiStep())).step(drawn(0, 1))
    with pytest.raises(ValueError, match=r"beta must be a number in \(0, 1\], got 0"):
        MOML(beta=0)
    with pytest.raises(ValueError, match="version must be 1 or 2, got 3"):
        MOML(version=3)
    model, other = learner(module, MOML()), learner(mlp().double(), Exact())
    model.step(drawn(0, 1))
    with pytest.raises(ValueError, match=r"the saved state has moml/0, moml/1, which metagrad.Ex"):
        other.load_state_dict(model.state_dict())
