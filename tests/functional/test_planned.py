"""A module is inspected once for all forward passes in ``planned``, with unchanged results."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import FOMAML, CoLearner, MetaLearner, TaskBatch, ops
from fastmeta.functional import FunctionalModule, FusedModule, _fusion
from fastmeta.inner_step import at_step
from fastmeta.models import MLP, Conv4, PerStepBatchNorm2d

WAYS = 3


def network(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """Two fused blocks, one of them with pooling, and a convolution that is not fused."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm(4), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 4, 1), norm(4), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(16, WAYS),
    )


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 1, 4, 4)


def batch() -> TaskBatch:
    y = torch.arange(2 * WAYS).remainder(WAYS).repeat(2, 1)
    return TaskBatch(torch.randn(2, 2 * WAYS, 1, 4, 4), y, torch.randn(2, 2 * WAYS, 1, 4, 4), y)


@pytest.fixture
def scans() -> Iterator[mock.Mock]:
    """Counts the inspections of a module."""
    with mock.patch.object(_fusion, "_find_chains", wraps=_fusion._find_chains) as counted:
        yield counted


@pytest.fixture
def blocks() -> Iterator[mock.Mock]:
    """Counts the fused blocks that run."""
    with mock.patch.object(ops, "batch_norm_relu", wraps=ops.batch_norm_relu) as counted:
        yield counted


def learner(module: nn.Module, **options: Any) -> MetaLearner:
    return FOMAML(module, F.cross_entropy, inner_lr=0.1, inner_steps=2, **options)


# --- how often ------------------------------------------------------------------------------------


def test_once_per_meta_batch(scans: mock.Mock) -> None:
    model = learner(network())
    for call in (model.step, model.predict, model.meta_gradient):
        call(batch())
        assert scans.call_count == 1
        scans.reset_mock()
    tasks = batch()
    model.adapt(tasks.support_x[0], tasks.support_y[0])
    assert scans.call_count == 1


def test_once_for_each_segment(scans: mock.Mock) -> None:
    learner(network(), checkpoint=True).step(batch())
    assert scans.call_count == 3  # two blocks, and the linear layer with its flattening


def test_once_for_the_co_learner(scans: mock.Mock) -> None:
    head = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(16, WAYS))
    learner(network(), co_learner=CoLearner(head, at="1")).step(batch())
    assert [call.args[0] is head for call in scans.call_args_list] == [False, True]


def test_without_a_forward_pass_nothing_is_inspected(scans: mock.Mock) -> None:
    model = learner(MLP(16, WAYS, (5,)), engine="mlp")
    tasks = batch()
    flat = TaskBatch(
        tasks.support_x.flatten(2), tasks.support_y, tasks.query_x.flatten(2), tasks.query_y
    )
    model.step(flat)
    assert scans.call_count == 0


def test_each_forward_pass_outside(scans: mock.Mock) -> None:
    model = FusedModule(network())
    for _ in range(2):
        model(model.params, model.clone_buffers(), images())
    assert scans.call_count == 2
    with model.planned():
        with model.planned():
            model(model.params, model.clone_buffers(), images())
        model(model.params, model.clone_buffers(), images())
    assert scans.call_count == 3
    model(model.params, model.clone_buffers(), images())
    assert scans.call_count == 4


# --- what it computes -----------------------------------------------------------------------------


def evaluation(module: nn.Module) -> None:
    module.eval()


def partly_evaluation(module: nn.Module) -> None:
    module[0][1].eval()


def hook(*path: int) -> Callable[[nn.Module], None]:
    def register(module: nn.Module) -> None:
        for i in path:
            module = module[i]
        module.register_forward_hook(lambda m, x, y: 2 * y)

    return register


def forward(module: nn.Module) -> None:
    module[1][2].forward = torch.tanh


def layer(module: nn.Module) -> None:
    module[1].append(nn.Tanh())


def block(module: nn.Module) -> None:
    module[1].extend([nn.BatchNorm2d(4).double(), nn.ReLU()])


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "nothing": lambda module: None,
    "evaluation": evaluation,
    "partly evaluation": partly_evaluation,
    "hook of a chain": hook(0),
    "hook of a convolution": hook(0, 0),
    "hook of a norm": hook(1, 1),
    "hook of an activation": hook(0, 2),
    "hook of a pooling": hook(0, 3),
    "forward": forward,
    "layer": layer,
    "block": block,
}


@pytest.mark.parametrize("kind", [FusedModule, FunctionalModule])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_between_forward_passes(change: str, kind: type[FunctionalModule]) -> None:
    """As without ``planned``, the next forward pass sees them."""
    original, x, later = network().double(), images().double(), images().double()
    results = []
    for planned in (True, False):
        module = copy.deepcopy(original)
        model = kind(module)
        buffers = model.clone_buffers()
        with model.planned() if planned else nullcontext():
            outputs = [model(model.params, buffers, x)]
            CHANGES[change](module)
            outputs += [model(model.params, buffers, later) for _ in range(2)]
            module.train()
            outputs.append(model(model.params, buffers, x))
        results.append([*outputs, *buffers.values()])
    # Where less is fused, the memory order of images may differ, and with it their rounding.
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_norm_of_the_inner_step(steps: int, blocks: mock.Mock) -> None:
    module = network(lambda channels: PerStepBatchNorm2d(channels, steps))
    for i, norm in enumerate(m for m in module.modules() if type(m) is nn.BatchNorm2d):
        nn.init.constant_(norm.bias, i)
    model, x = FusedModule(module), images()
    results = []
    for planned in (True, False):
        buffers = model.clone_buffers()
        outputs = []
        with model.planned() if planned else nullcontext():
            for step in (0, 1, 2, None, 0):
                with at_step(step):
                    outputs.append(model(model.params, buffers, x))
        results.append([*outputs, *buffers.values()])
    assert all(map(torch.equal, *results))
    assert torch.equal(results[0][0], results[0][1]) == (steps == 1)
    assert blocks.call_count == 2 * 2 * 5


def test_global_hooks(blocks: mock.Mock) -> None:
    model, seen = FusedModule(network()), []
    with model.planned():
        handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
        try:
            model(model.params, model.clone_buffers(), images())
        finally:
            handle.remove()
        assert seen.count(nn.BatchNorm2d) == 2
        assert blocks.call_count == 0
        model(model.params, model.clone_buffers(), images())
        assert blocks.call_count == 2


HEADS = {"0": 16, "0.0": 64, "0.2": 64, "0.3": 16, "1.1": 16}


@pytest.mark.parametrize("at", HEADS)
def test_a_co_learner_at_any_submodule(at: str) -> None:
    """Its hook comes and goes while the plan stays."""
    original, tasks = network(), batch()
    head = nn.Sequential(nn.Flatten(), nn.Linear(HEADS[at], WAYS))
    results = []
    for planned in (True, False):
        module = copy.deepcopy(original)
        model = learner(module, co_learner=CoLearner(copy.deepcopy(head), at=at))
        if not planned:
            model._built.model.planned = nullcontext  # type: ignore[method-assign]
        gradient, result = model.meta_gradient(tasks)
        results.append([gradient, result.query_output, *module.buffers()])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_same_bits_of_a_meta_gradient(fuse: bool, checkpoint: bool) -> None:
    original, tasks = Conv4(1, 4, WAYS, hidden=5, batch_norm_stats=True), batch()
    results = []
    for planned in (True, False):
        module = copy.deepcopy(original)
        model = learner(module, fuse=fuse, checkpoint=checkpoint)
        if not planned:
            model._built.model.planned = nullcontext  # type: ignore[method-assign]
        gradient, result = model.meta_gradient(tasks)
        results.append([gradient, result.query_output, model.predict(tasks), *module.buffers()])
    assert all(map(torch.equal, *results))


def test_an_error_ends_the_plan(scans: mock.Mock) -> None:
    module = network()
    model = FusedModule(module)
    before = [tuple(vars(m)) for m in module.modules()]
    with pytest.raises(RuntimeError), model.planned():
        model(model.params, model.clone_buffers(), images()[..., :3])
    assert [tuple(vars(m)) for m in module.modules()] == before
    model(model.params, model.clone_buffers(), images())
    assert scans.call_count == 2
