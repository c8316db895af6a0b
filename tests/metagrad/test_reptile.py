"""Reptile against its definition."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from fastmeta import Reptile
from tests.helpers.problems import loss, mlp, tasks
from tests.helpers.reference_loops import LR


def flat(grads: Iterable[Tensor | None], params: Iterable[Tensor]) -> Tensor:
    pairs = zip(grads, params, strict=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in pairs]
    )


def test_reptile_is_the_displacement() -> None:
    module, batch = mlp().double(), tasks()
    learner = Reptile(module, loss, inner_lr=LR, inner_steps=4, use_query=False)
    fast = [learner.adapt(t.support_x, t.support_y) for t in batch]
    expected = sum(
        torch.cat([(p - f[n]).detach().flatten() for n, p in module.named_parameters()])
        for f in fast
    )
    found, _ = learner.meta_gradient(batch)
    torch.testing.assert_close(found, expected / len(batch))


def test_reptile_with_query_trains_on_the_union() -> None:
    module, batch = mlp().double(), tasks()
    found, _ = Reptile(module, loss, inner_lr=LR, inner_steps=1).meta_gradient(batch)
    params = list(module.parameters())
    expected = 0
    for t in batch:
        value = loss(module(t.support_x), t.support_y) + loss(module(t.query_x), t.query_y)
        expected += LR * 0.5 * flat(torch.autograd.grad(value, params), params)
    torch.testing.assert_close(found, expected / len(batch))


def test_one_outer_sgd_step_of_reptile_is_an_interpolation() -> None:
    module, batch = mlp().double(), tasks(1)
    learner = Reptile(
        module,
        loss,
        inner_lr=LR,
        inner_steps=3,
        use_query=False,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.25),
    )
    fast = learner.adapt(batch[0].support_x, batch[0].support_y)
    expected = {n: p + 0.25 * (fast[n] - p) for n, p in copy.deepcopy(module).named_parameters()}
    learner.step(batch)
    for name, param in module.named_parameters():
        torch.testing.assert_close(param, expected[name])
