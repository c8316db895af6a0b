"""LocalMOML: local steps with a moving average of fast weights, against plain loops."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.learners import build
from fastmeta.metagrad import Exact, FirstOrder, LocalMOML, MetaGradient, Reptile
from tests.helpers.problems import WAYS, loss, mlp, tasks

LR, LOCAL, BETA, H = 0.3, 0.2, 0.7, 3


def learner(module: nn.Module, metagrad: MetaGradient) -> MetaLearner:
    return MetaLearner(
        module,
        loss,
        adaptation=SGD(LR, 2),
        metagrad=metagrad,
        aggregation=Mean(),
        optimizer=lambda p: torch.optim.SGD(p, LOCAL),
        engine="loop",
    )


@pytest.mark.parametrize(("form", "plain"), [("code", FirstOrder()), ("paper", Exact())])
def test_one_local_step_without_average_is_maml(form: Any, plain: MetaGradient) -> None:
    module, batch = mlp().double(), tasks()
    found, result = learner(module, LocalMOML(None, 1, LOCAL, 1, form)).meta_gradient(batch)
    expected, reference = learner(module, plain).meta_gradient(batch)
    assert torch.equal(found, expected)
    assert torch.equal(result.query_loss, reference.query_loss)


def enlarged(batch: TaskBatch) -> TaskBatch:
    """With enough examples for every local step to have its own."""
    n = H + 1
    return TaskBatch(
        *(torch.cat([t] * n, 1) + 0 for t in (batch.support_x, batch.support_y)),
        *(torch.cat([t] * n, 1)[:, : 4 * H * WAYS] for t in (batch.query_x, batch.query_y)),
    ).map(lambda t: t + 0.3 * torch.randn_like(t) if t.is_floating_point() else t)


def reference(module: nn.Module, batch: TaskBatch, form: str, fresh: bool) -> list[Tensor]:
    """The mean over tasks of the parameters after the local steps."""
    names = [n for n, _ in module.named_parameters()]
    theta = [p.detach() for p in module.parameters()]
    total = [torch.zeros_like(p) for p in theta]

    def value(params: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(module, dict(zip(names, params, strict=True)), (x,)), y)

    def adapted(start: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
        fast = start
        for _ in range(2):
            grads = torch.autograd.grad(value(fast, x, y), fast, create_graph=True)
            fast = [p - LR * g for p, g in zip(fast, grads, strict=True)]
        return fast

    for x, y, query_x, query_y in batch:
        support, query = (x.chunk(H + 1), y.chunk(H + 1)), (query_x.chunk(H), query_y.chunk(H))
        if not fresh:
            support, query = ([x] * (H + 1), [y] * (H + 1)), ([query_x] * H, [query_y] * H)
        local = [p.clone().requires_grad_() for p in theta]
        u = [f.detach() for f in adapted(local, support[0][0], support[1][0])]
        for h in range(H):
            fast = adapted(local, support[0][h + 1], support[1][h + 1])
            u = [(1 - BETA) * m + BETA * f.detach() for m, f in zip(u, fast, strict=True)]
            point = [m.clone().requires_grad_() for m in u]
            grads = torch.autograd.grad(value(point, query[0][h], query[1][h]), point)
            if form == "paper":
                grads = torch.autograd.grad(fast, local, grads)
            else:
                grads = [BETA * g for g in grads]
            moved = [(p - LOCAL * g).detach() for p, g in zip(local, grads, strict=True)]
            local = [p.requires_grad_() for p in moved]
        total = [t + p.detach() / len(batch) for t, p in zip(total, local, strict=True)]
    return total


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_step_is_the_mean_of_the_local_parameters(form: Any, fresh: bool) -> None:
    module, batch = mlp().double(), enlarged(tasks())
    expected = reference(module, batch, form, fresh)
    learner(module, LocalMOML(None, H, LOCAL, BETA, form, fresh)).step(batch)
    for param, mean in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(param.detach(), mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fresh", [False, True])
def test_loss_and_outputs_are_of_the_whole_query_set(fresh: bool) -> None:
    module, batch = mlp().double(), enlarged(tasks())
    _, result = learner(module, LocalMOML(None, H, LOCAL, BETA, fresh=fresh)).meta_gradient(batch)
    outputs = result.query_output
    losses = [loss(own, y) for own, y in zip(outputs, batch.query_y, strict=True)]
    torch.testing.assert_close(result.query_loss, torch.stack(losses))


def test_learned_rates_get_the_sum_over_local_steps() -> None:
    module, batch = mlp().double(), tasks()
    models = [
        build("meta-sgd", copy.deepcopy(module), loss, inner_lr=LR, metagrad="local-moml",
              metagrad_options={"local_steps": h, "local_lr": 1e-9, "beta": 1.0})
        for h in (1, 4)
    ]  # fmt: skip
    one, four = (model.meta_gradient(batch)[0] for model in models)
    torch.testing.assert_close(four, 4 * one, rtol=1e-6, atol=1e-9)


def test_what_it_cannot_do_is_refused() -> None:
    module = mlp().double()
    with pytest.raises(ValueError, match=r"6 examples cannot be split into 8 parts"):
        learner(module, LocalMOML(local_steps=7, fresh=True)).step(tasks())
    with pytest.raises(ValueError, match="got Reptile"):
        LocalMOML(Reptile())
    with pytest.raises(ValueError, match="local_steps must be an integer of at least 1, got 0"):
        LocalMOML(local_steps=0)
