"""torch compiles and exports networks with the parameters from ``adapt()``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import FOMAML, MAML, CoLearner, MetaLearner
from fastmeta.learners import build
from fastmeta.models import MLP, Conv4, PerStepBatchNorm2d, conv_co_learner

X, WAYS = (6, 1, 8, 8), 3


def plain(module: nn.Module) -> MetaLearner:
    return MAML(module, F.cross_entropy, inner_lr=0.1, inner_steps=2)


def with_co_learner() -> MetaLearner:
    module = Conv4(1, 8, WAYS, 4, pool_last=False)
    head = conv_co_learner(*module.map_size, WAYS, hidden=4)
    co_learner = CoLearner(head, "features")
    return FOMAML(module, F.cross_entropy, inner_lr=0.1, co_learner=co_learner)


LEARNERS: dict[str, Callable[[], MetaLearner]] = {
    "mlp": lambda: plain(MLP(64, WAYS, (5,))),
    "conv4": lambda: plain(Conv4(1, 8, WAYS, 4)),
    "running statistics": lambda: plain(Conv4(1, 8, WAYS, 4, batch_norm_stats=True)),
    "some layers": lambda: build("anil", MLP(64, WAYS, (5,)), F.cross_entropy, inner_lr=0.1),
    "co-learner": with_co_learner,
    "per step": lambda: plain(Conv4(1, 8, WAYS, 4, batch_norm_steps=2)),
}


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def some(name: str) -> MetaLearner:
    learner = LEARNERS[name]()
    learner.module.train(bool(torch.rand(()) < 0.5))
    return learner


def support() -> tuple[Tensor, Tensor]:
    return torch.randn(X), torch.arange(WAYS).repeat(2)


@pytest.mark.parametrize("name", [name for name in LEARNERS if name != "per step"])
def test_one_graph_for_all_tasks(name: str) -> None:
    learner = some(name)

    def call(fast: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(learner.module, fast, (x,))

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for stance in ("default", "fail_on_recompile"):
        fast, x = learner.adapt(*support()), torch.randn(X)
        with torch.compiler.set_stance(stance):
            found = compiled(fast, x)
        torch.testing.assert_close(found, call(fast, x))


def test_one_graph_after_the_inner_steps() -> None:
    learner = some("per step")
    adapted = copy.deepcopy(learner.module)
    adapted.load_state_dict(learner.adapt(*support()), strict=False)
    x = torch.randn(X)
    expected = copy.deepcopy(adapted)(x)
    for name, part in list(adapted.named_modules()):
        if isinstance(part, PerStepBatchNorm2d):
            adapted.set_submodule(name, part.current)
    found = torch.compile(adapted, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LEARNERS)
def test_export_with_dynamic_batch_size(name: str) -> None:
    learner = some(name)
    module = copy.deepcopy(learner.module)
    module.load_state_dict(learner.adapt(*support()), strict=False)
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(module, (torch.randn(X),), dynamic_shapes=(batch,))
    assert not any("co_learner" in name for name in program.state_dict)
    for n in (6, 4):
        x = torch.randn(n, *X[1:])
        torch.testing.assert_close(program.module()(x), copy.deepcopy(module)(x))
