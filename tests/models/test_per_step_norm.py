"""A BatchNorm per inner step against one network per step that share all other layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch, ops
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.functional._fusion import fused
from fastmeta.inner_step import at_step
from fastmeta.metagrad import Exact, FirstOrder, MetaGradient, MultiStep, Recursion
from fastmeta.models import Conv4, PerStepBatchNorm2d
from tests.helpers.problems import WAYS, loss, tasks

LR, STEPS = 0.3, 3


def network(norms: int = STEPS) -> nn.Module:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        PerStepBatchNorm2d(4, norms),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, WAYS),
    ).double()
    for param in module[1].parameters():
        nn.init.normal_(param)
    return module


def reference_gradients(
    module: nn.Module, batch: TaskBatch, first_order: bool, multi_step: bool
) -> tuple[Tensor, list[Tensor]]:
    """The meta-gradient and the buffers after it, from plain networks for the inner steps."""
    last = len(module[1].steps) - 1
    params = dict(module.named_parameters())
    plain = [nn.Sequential(*copy.deepcopy(module)) for _ in range(last + 1)]
    for k, net in enumerate(plain):
        net[1] = net[1].steps[k]

    def run(step: int, values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        k = min(step, last)
        own = {n.replace(f"steps.{k}.", ""): v for n, v in values.items()}
        own = {n: v for n, v in own.items() if "steps" not in n}
        return loss(functional_call(plain[k], own, (x,)), y)

    total, after = 0, []
    for task in batch:
        buffers = {n: b.clone() for n, b in module.named_buffers()}
        after.append(buffers.values())
        fast, queries = dict(params), []
        for step in range(STEPS):
            value = run(step, {**fast, **buffers}, task.support_x, task.support_y)
            grads = torch.autograd.grad(
                value, list(fast.values()), create_graph=True, allow_unused=True
            )
            if first_order:
                grads = [None if g is None else g.detach() for g in grads]
            fast = {
                n: p if g is None else p - LR * g
                for (n, p), g in zip(fast.items(), grads, strict=True)
            }
            at_end = step == STEPS - 1  # outside the inner steps: the last one of the module
            if multi_step or at_end:
                k = last if at_end else step
                queries.append(run(k, {**fast, **buffers}, task.query_x, task.query_y))
        total = total + sum(queries) / len(queries)
    found = torch.autograd.grad(total / len(batch), list(params.values()), materialize_grads=True)
    merged = [
        torch.stack(b).mean(0) if b[0].is_floating_point() else b[0]
        for b in zip(*after, strict=True)
    ]
    return torch.cat([g.flatten() for g in found]), merged


WAYS_TO_GO: dict[str, tuple[Callable[[], MetaGradient], dict[str, Any]]] = {
    "exact": (Exact, {"engine": "loop"}),
    "exact, auto": (Exact, {}),
    "exact, unfused": (Exact, {"fuse": False}),
    "exact, batched": (Exact, {"engine": "batched"}),
    "recursion": (Recursion, {"engine": "loop"}),
    "recursion, no graph kept": (lambda: Recursion(graphs=0), {"engine": "loop"}),
    "recursion, unfused": (lambda: Recursion(graphs=0), {"fuse": False}),
    "recursion, forward": (lambda: Recursion("forward"), {"engine": "loop"}),
    "recursion, batched": (lambda: Recursion(graphs=0), {"engine": "batched"}),
    "first order": (FirstOrder, {"engine": "loop"}),
    "first order, auto": (FirstOrder, {}),
    "first order, batched": (FirstOrder, {"engine": "batched"}),
    "first order, computed again": (FirstOrder, {"checkpoint": True}),
    "multi-step": (lambda: MultiStep(9), {}),
    "multi-step, unfused": (lambda: MultiStep(9), {"fuse": False}),
    "multi-step, batched": (lambda: MultiStep(9), {"engine": "batched"}),
    "multi-step, first order": (lambda: MultiStep(9, 9), {}),
}


@pytest.mark.parametrize("norms", [1, 2, STEPS, STEPS + 2])
@pytest.mark.parametrize("way", WAYS_TO_GO)
def test_every_step_has_its_own_batch_norm(way: str, norms: int) -> None:
    module, batch = network(norms), tasks(2)
    make, options = WAYS_TO_GO[way]
    expected, buffers = reference_gradients(
        module, batch, "first order" in way, "multi-step" in way
    )
    learner = MetaLearner(
        module, loss, adaptation=SGD(LR, STEPS), metagrad=make(), aggregation=Mean(), **options
    )
    found, _ = learner.meta_gradient(batch)
    assert (found - expected).norm() <= 1e-9 * expected.norm()
    for mine, other in zip(module.buffers(), buffers, strict=True):
        torch.testing.assert_close(mine, other)


def test_only_steps_that_ran_have_gradients() -> None:
    module = network()
    with at_step(1):
        loss(module(tasks(1).query_x[0]), tasks(1).query_y[0]).backward()
    assert [norm.weight.grad is None for norm in module[1].steps] == [True, False, True]


@pytest.mark.parametrize("hooked", [False, True])
def test_it_is_fused_like_a_batch_norm(hooked: bool) -> None:
    module = Conv4(1, 28, WAYS, hidden=4, batch_norm_steps=STEPS).double()
    if hooked:
        for block in module.features[:4]:
            block[1].register_forward_hook(lambda *_: None)
    with mock.patch.object(ops, "batch_norm_relu", wraps=ops.batch_norm_relu) as calls:
        for step in (0, 1, None):
            x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
            with at_step(step):
                with fused(module):
                    found = module(x)
                torch.testing.assert_close(found, module(x), rtol=1e-9, atol=1e-9)
    assert calls.call_count == (0 if hooked else 12)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("fuse", [False, True])
def test_conv4(fuse: bool, checkpoint: bool) -> None:
    torch.manual_seed(0)  # 25 steps must suffice for this seed
    batch = tasks(4, torch.float32)
    module = Conv4(1, 4, WAYS, hidden=8, batch_norm_stats=True, batch_norm_steps=2)
    learner = MetaLearner(
        module,
        loss,
        adaptation=SGD(0.1, 2),
        metagrad=FirstOrder(),
        aggregation=Mean(),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.02),
        fuse=fuse,
        checkpoint=checkpoint,
    )
    losses = [learner.step(batch).query_loss.mean().item() for _ in range(25)]
    assert losses[-1] < 0.9 * losses[0]
    first, last = module.features[0][1].steps
    assert (first.num_batches_tracked, last.num_batches_tracked) == (25, 50)
    assert not torch.equal(first.running_mean, last.running_mean)


def test_further_steps_and_calls_outside_steps_use_the_last() -> None:
    norm, x = PerStepBatchNorm2d(2, 3), torch.randn(5, 2, 4, 4)
    for i, own in enumerate(norm.steps):
        nn.init.constant_(own.bias, float(i))
    for step, expected in ((0, 0.0), (1, 1.0), (2, 2.0), (9, 2.0), (None, 2.0)):
        with at_step(step):
            torch.testing.assert_close(norm(x).mean().item(), expected, rtol=0, atol=1e-5)


def test_options_are_those_of_batch_norm() -> None:
    norm = PerStepBatchNorm2d(2, 2, momentum=0.5, track_running_stats=False)
    assert {(n.momentum, n.track_running_stats) for n in norm.steps} == {(0.5, False)}
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        PerStepBatchNorm2d(2, 0)
