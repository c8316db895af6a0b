"""A penalty of the adapted parameters in the support and query losses, against plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import CoLearner, MetaLearner
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.engines import CompiledEngine
from fastmeta.learners import compare_precision
from fastmeta.metagrad import Exact, FirstOrder, MetaGradient
from tests.helpers.problems import WAYS, mlp, tasks

LR, STEPS, STRENGTH = 0.2, 2, 0.3


def squares(params: Mapping[str, Tensor]) -> Tensor:
    return STRENGTH * sum(p.square().sum() for n, p in params.items() if n.endswith("weight"))


def learner(module: nn.Module, metagrad: MetaGradient, **options: Any) -> MetaLearner:
    return MetaLearner(
        module,
        F.cross_entropy,
        adaptation=SGD(LR, STEPS),
        metagrad=metagrad,
        aggregation=Mean(),
        penalty=squares,
        **options,
    )


def test_it_is_part_of_both_losses() -> None:
    module, batch = mlp().double(), tasks(2)
    start = {n: p.detach().requires_grad_() for n, p in module.named_parameters()}

    def loss(fast: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, fast, (x,)), y) + squares(fast)

    support, query = [], []
    for task in batch:
        fast = dict(start)
        for k in range(STEPS):
            value = loss(fast, task.support_x, task.support_y)
            if k == 0:
                support.append(value)
            grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
            fast = {n: p - LR * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        query.append(loss(fast, task.query_x, task.query_y))
    expected = torch.autograd.grad(torch.stack(query).mean(), list(start.values()))
    model = learner(module, Exact())
    result = model.backward(batch)
    for param, grad in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(param.grad, grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.support_loss, torch.stack(support).detach())
    torch.testing.assert_close(result.query_loss, torch.stack(query).detach())
    torch.testing.assert_close(model.evaluate(batch).query_loss, result.query_loss)
    adapted = model.adapt(task.support_x, task.support_y)
    assert all(torch.allclose(adapted[n], p) for n, p in fast.items())


@pytest.mark.parametrize("engine", ["batched", "compiled"])
def test_engines_that_run_the_module_add_it(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledEngine, "_compile_region", lambda _, region, alone: region)
    module, batch = mlp().double(), tasks(3)
    expected, _ = learner(module, Exact(), engine="loop").meta_gradient(batch)
    found, _ = learner(module, Exact(), engine=engine).meta_gradient(batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ["mlp", "sequence"])
def test_compiled_steps_say_why_not(engine: Any) -> None:
    batch = tasks(2, torch.float32)
    with pytest.raises(ValueError, match="the learner has a penalty"):
        learner(mlp(), Exact(), engine=engine).check(batch)
    learner(mlp(), Exact()).step(batch)


def test_it_is_added_once_with_a_co_learner() -> None:
    module, batch, head = mlp().double(), tasks(2), nn.Linear(WAYS, WAYS).double()
    co_learner = CoLearner(head, "", gamma=0.5)
    model = learner(module, FirstOrder(), co_learner=co_learner)
    plain = model.with_components(adaptation=SGD(LR, 0))
    found = plain.evaluate(batch).query_loss  # that of the module alone
    result = plain.meta_gradient(batch)[1].query_loss
    outputs = [head(module(task.query_x)) for task in batch]
    losses = [F.cross_entropy(o, t.query_y) for o, t in zip(outputs, batch, strict=True)]
    torch.testing.assert_close(result, found + 0.5 * torch.stack(losses).detach())


def test_freezing_and_other_precisions_keep_it() -> None:
    module, batch = mlp().float(), tasks(2, torch.float32)
    model = learner(module, Exact())
    assert compare_precision(model, batch).cosine > 0.999
    other = copy.deepcopy(module)
    with torch.no_grad():
        module[1].weight.requires_grad_(False)
    loss = model.evaluate(batch).support_loss
    values = [F.cross_entropy(other(task.support_x), task.support_y) for task in batch]
    penalty = STRENGTH * other[3].weight.square().sum()
    torch.testing.assert_close(loss, (torch.stack(values) + penalty).detach())
    assert model.penalty is squares
