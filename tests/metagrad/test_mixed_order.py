"""Mixed order: from FOMAML to MAML by a pattern of layers, against plain autograd in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from fastmeta import CoLearner, MetaLearner, TaskBatch, learners
from fastmeta.adaptation import SGD, Adam, Adaptation, LayerPattern, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import (
    GSL,
    CentralDifference,
    Exact,
    FirstOrder,
    MetaGradient,
    Recursion,
)
from fastmeta.models import MLP, Conv4
from tests.helpers.problems import mlp, tasks

LR = 0.3


def conv4() -> nn.Module:
    return nn.Sequential(nn.Unflatten(-1, (1, 8, 8)), Conv4(1, 8, 3, hidden=4)).double()


def deep() -> nn.Module:
    layers = (nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    return nn.Sequential(nn.Flatten(), *layers).double()


def gradient(
    module: nn.Module, batch: TaskBatch, way: MetaGradient, inner: Adaptation, **options: Any
) -> Tensor:
    learner = MetaLearner(
        copy.deepcopy(module),
        F.cross_entropy,
        adaptation=copy.deepcopy(inner),
        metagrad=way,
        aggregation=Mean(),
        **{"engine": "loop", **options},
    )
    return learner.meta_gradient(batch)[0]


def by_autograd(module: nn.Module, batch: TaskBatch, steps: int, chosen: Sequence[set[str]]):
    """The mean over tasks, on plain autograd; gradients of parameters not in `chosen` detached."""
    names = [name for name, _ in module.named_parameters()]
    total = torch.zeros(sum(p.numel() for p in module.parameters()), dtype=torch.float64)
    for task in batch:
        start = [p.detach().requires_grad_() for p in module.parameters()]
        fast = start
        for k in range(steps):
            output = functional_call(module, dict(zip(names, fast, strict=True)), (task.support_x,))
            loss = F.cross_entropy(output, task.support_y)
            grads = torch.autograd.grad(loss, fast, create_graph=True)
            kept = chosen[min(k, len(chosen) - 1)]
            grads = [g if n in kept else g.detach() for n, g in zip(names, grads, strict=True)]
            fast = [p - LR * g for p, g in zip(fast, grads, strict=True)]
        output = functional_call(module, dict(zip(names, fast, strict=True)), (task.query_x,))
        found = torch.autograd.grad(F.cross_entropy(output, task.query_y), start)
        total += torch.cat([g.flatten() for g in found]) / len(batch)
    return total


HEAD, MIDDLE = {"5.weight", "5.bias"}, {"3.weight", "3.bias"}
PATTERNS = {
    "head": [HEAD],
    "001": [HEAD],
    "010": [MIDDLE],
    "3,head": [MIDDLE | HEAD],
    "head/body": [HEAD, MIDDLE | {"1.weight", "1.bias"}],
}
WAYS = {
    "exact": lambda layers: Exact(layers),
    "recursion": lambda layers: Recursion(layers=layers),
    "recursion, all graphs": lambda layers: Recursion(graphs=9, layers=layers),
    "recursion, no graph": lambda layers: Recursion(graphs=0, layers=layers),
    "recursion, forward": lambda layers: Recursion("forward", layers=layers),
}


@pytest.mark.parametrize("engine", ["loop", "batched", "mlp"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_against_autograd(pattern: str, way: str, steps: int, engine: Any) -> None:
    module, batch = deep(), tasks(2)
    expected = by_autograd(module, batch, steps, PATTERNS[pattern])
    found = gradient(module, batch, WAYS[way](pattern), SGD(LR, steps), engine=engine)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    plain = gradient(module, batch, FirstOrder(), SGD(LR, steps))
    exact = gradient(module, batch, Exact(), SGD(LR, steps))
    assert (found - plain).norm() > 1e-3 * plain.norm()
    assert (found - exact).norm() > 1e-3 * exact.norm()


INNER = {
    "sgd": SGD(LR, 3),
    "momentum": SGD(LR, 3, momentum=0.9),
    "adam": Adam(0.01, 2, eps=0.01),
    "learned rates": MetaSGD(LR, 2),
    "lambda": LayerPattern(SGD(LR, 2), "head/full"),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("way", WAYS)
def test_none_is_fomaml_and_all_is_maml_bitwise(way: str, inner: str) -> None:
    module, batch = mlp(), tasks(3, torch.float32)
    make, plain = WAYS[way], WAYS[way]("all")
    first, none = (gradient(module, batch, w, INNER[inner]) for w in (FirstOrder(), make("none")))
    assert torch.equal(first, none)
    full, every = (gradient(module, batch, w, INNER[inner]) for w in (plain, make("full")))
    torch.testing.assert_close(full, every)
    default = Exact() if way == "exact" else Recursion(plain.hvp, plain.graphs)
    assert torch.equal(full, gradient(module, batch, default, INNER[inner]))


@pytest.mark.parametrize("inner", INNER)
def test_recursion_is_exact_for_every_inner_loop(inner: str) -> None:
    module, batch = deep(), tasks(2)
    for pattern in PATTERNS:
        expected = gradient(module, batch, Exact(pattern), INNER[inner])
        for graphs in (0, 1):
            found = gradient(module, batch, Recursion("auto", graphs, pattern), INNER[inner])
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [deep, conv4])
def test_with_an_adapted_head_the_head_is_exact(make: Any) -> None:
    module, anil = make(), LayerPattern(SGD(LR, 3), "head")
    batch = tasks(2) if make is deep else images(2)
    expected = gradient(module, batch, Exact(), anil)
    for way in (Exact("head"), Recursion(layers="head")):
        torch.testing.assert_close(
            gradient(module, batch, way, anil), expected, rtol=1e-12, atol=1e-14
        )


def images(count: int) -> TaskBatch:
    def split(examples: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(3).repeat(examples).expand(count, -1).contiguous()
        return torch.randn(count, 3 * examples, 64, dtype=torch.float64), labels

    return TaskBatch(*split(2), *split(3))


def test_nothing_below_the_layers_is_differentiated_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, grad = [], torch.autograd.grad

    def spy(outputs: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        if options.get("create_graph"):
            asked.append(len(list(inputs)))
        return grad(outputs, inputs, *args, **options)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    module, batch = deep(), tasks(1)
    for way in (Exact("head"), Recursion(layers="head"), Recursion(graphs=0, layers="head")):
        asked.clear()
        gradient(module, batch, way, SGD(LR, 2))
        assert set(asked) == {2}, "the weight and the bias of the head alone"


class CountBackward(nn.Module):
    """The identity; counts how often a gradient passes it."""

    passes = 0

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        if y.requires_grad:
            y.register_hook(self.count)
        return y

    def count(self, _: Tensor) -> None:
        self.passes += 1


@pytest.mark.parametrize("steps", [1, 3])
def test_the_head_costs_one_more_backward_pass_per_inner_step(steps: int) -> None:
    passes = []
    for layers in ("none", "head"):
        counter = CountBackward()
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), counter, nn.Tanh(), nn.Linear(8, 3))
        learner = MetaLearner(
            module.double(),
            F.cross_entropy,
            adaptation=SGD(LR, steps),
            metagrad=Exact(layers),
            aggregation=Mean(),
            engine="loop",
        )
        learner.meta_gradient(tasks(1))
        passes.append(counter.passes)
    # One pass of the query set, and one or two of the support set per inner step.
    assert passes == [1 + steps, 1 + 2 * steps]


def test_co_learners_and_named_components() -> None:
    module, batch = deep(), tasks(2)
    found = []
    for way in (Exact("head"), Recursion(layers="head")):
        torch.manual_seed(0)
        head = MLP(6, 3, (4,)).double()
        found.append(gradient(module, batch, way, SGD(LR, 2), co_learner=CoLearner(head, at="4")))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-13)
    learner = learners.build(
        *("maml", deep(), F.cross_entropy),
        inner_lr=LR,
        metagrad_options={"layers": "head"},
        engine="loop",
    )
    expected = gradient(learner.module, batch, Exact("head"), SGD(LR))
    assert torch.equal(learner.meta_gradient(batch)[0], expected)


def test_all_and_none_bitwise_with_the_mlp_engine() -> None:
    module, batch = deep(), tasks(2)

    def found(way: MetaGradient) -> Tensor:
        return gradient(module, batch, way, SGD(LR, 2), engine="mlp")

    none, every = found(FirstOrder()), found(Exact())
    assert torch.equal(found(Exact("none")), none)
    assert torch.equal(found(GSL(0.0)), none)
    for way in (Exact("full"), Recursion(), Recursion(layers="full"), GSL(layers="all")):
        assert torch.equal(found(way), every)


def test_invalid_layers() -> None:
    with pytest.raises(ValueError, match=r"layers must be a string, got 3\.5"):
        Exact(3.5)  # type: ignore[arg-type]
    assert Exact(101).layers == "101"  # type: ignore[arg-type]
    for layers in ("tail", "01", "all,head"):
        with pytest.raises(ValueError, match=r"pattern|bits"):
            gradient(deep(), tasks(1), Exact(layers), SGD(LR))


def test_central_differences_of_some_layers() -> None:
    module, batch = deep(), tasks(2)
    for layers in ("head", "010", "head/body"):
        found = gradient(module, batch, CentralDifference(1e-5, layers), SGD(LR, 2))
        expected = gradient(module, batch, Exact(layers), SGD(LR, 2))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    first = gradient(module, batch, CentralDifference(layers="none"), SGD(LR, 2))
    assert torch.equal(first, gradient(module, batch, FirstOrder(), SGD(LR, 2)))


@pytest.mark.parametrize("way", [Exact, Recursion])
def test_activation_checkpointing_changes_nothing(way: Any) -> None:
    module, batch = deep(), tasks(1)
    for layers in ("none", "head", "010"):
        found = gradient(module, batch, way(layers=layers), SGD(LR, 2), checkpoint=True)
        expected = gradient(module, batch, way(layers=layers), SGD(LR, 2))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
