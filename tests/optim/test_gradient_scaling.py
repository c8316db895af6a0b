"""GSLOptimizer with a gradient scaler."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from fastmeta import GSLOptimizer
from tests.helpers.problems import loss, mlp, tasks
from tests.optim.user_loops import gradients, same


def scaled(
    module: nn.Module, opt: GSLOptimizer, scaler: GradScaler, batch, overflow_task: int = -1
) -> None:
    opt.zero_grad()
    share = 1 / len(batch)
    for i, task in enumerate(batch):
        with opt.task(scale=scaler.get_scale() * share) as record:
            with record.record():
                loss(module(task.support_x), task.support_y).backward()
            value = loss(module(task.query_x), task.query_y) * share
            scaler.scale(value * (float("inf") if i == overflow_task else 1)).backward()
    scaler.step(opt)
    scaler.update()


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "R1", "eta": 0.3},
        {"variant": "R2", "eta": 0.3},
        {"variant": "R3", "lam_2": 1.0},
        {"eta": 0.0},
    ],
)
def test_gradient_scaling_changes_nothing(options: dict) -> None:
    module = mlp().double()
    module_copy = copy.deepcopy(module)
    # Not Adam, which turns a rounding error in a tiny gradient into a step.
    sgd = torch.optim.SGD
    opt, other = (
        GSLOptimizer(m.parameters(), sgd, lr=0.1, **options) for m in (module, module_copy)
    )
    scaler = GradScaler("cpu", init_scale=2.0**10)
    off = GradScaler("cpu", enabled=False)
    for _ in range(3):
        batch = tasks(3)
        scaled(module, opt, scaler, batch)
        scaled(module_copy, other, off, batch)
        for a, b in zip(module.parameters(), module_copy.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "options",
    [{"variant": "R1", "eta": 0.3}, {"variant": "R2", "eta": 0.3}, {"variant": "R3"}, {"eta": 0.0}],
)
def test_an_overflow_in_one_task_skips_the_step(options: dict) -> None:
    module, batch = mlp(), tasks(3, torch.float32)
    opt = GSLOptimizer(module.parameters(), lr=0.1, **options)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    before = copy.deepcopy(module)
    scaled(module, opt, scaler, batch, overflow_task=1)
    assert same(module, before)
    assert scaler.get_scale() == 2.0**9
    scaled(module, opt, scaler, batch)
    assert not same(module, before)
    assert all(p.isfinite().all() for p in module.parameters())


def test_unscaling_before_clipping() -> None:
    module = mlp().double()
    module_copy, batch = copy.deepcopy(module), tasks(3)
    opt, other = (
        GSLOptimizer(m.parameters(), torch.optim.SGD, lr=0.1, variant="R1", eta=0.3)
        for m in (module, module_copy)
    )
    scaler = GradScaler("cpu", init_scale=2.0**10)
    for task in batch:
        for net, optimizer, scale in (
            (module, opt, scaler.scale),
            (module_copy, other, lambda v: v),
        ):
            with optimizer.task() as record:
                with record.record():
                    loss(net(task.support_x), task.support_y).backward()
                scale(loss(net(task.query_x), task.query_y)).backward()
    scaler.unscale_(opt)
    for a, b in zip(
        gradients(list(module.parameters())), gradients(list(module_copy.parameters())), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    scaler.step(opt)
    other.step()
    for a, b in zip(module.parameters(), module_copy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
