"""Equal results with and without the cache of the frozen prefix."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import TaskBatch
from fastmeta.adaptation import SGD, Adam, MetaSGD
from fastmeta.functional import module as functional
from fastmeta.metagrad import Exact, FirstOrder, Recursion, Reptile
from tests.functional.prefix_cache_cases import NETWORKS, STEPS, learner
from tests.helpers.problems import WAYS, tasks


@contextmanager
def without_cache() -> Iterator[None]:
    with mock.patch.object(functional, "use_prefix_cache", return_value=nullcontext()):
        yield


def outcome(module: nn.Module, batch: TaskBatch, pattern: str, make: Any, **options: Any) -> list:
    """Gradient, results, buffers and a prediction of a copy of the module."""
    torch.manual_seed(1)
    own = copy.deepcopy(module)
    model = learner(own, pattern, make(), **options)
    gradient, result = model.meta_gradient(batch)
    attributes = [tuple(vars(m)) for m in own.modules()]
    seen = [gradient, *vars(result).values(), *own.buffers(), torch.rand(1)]
    own.eval()
    seen.append(model.predict(batch))
    assert attributes == [tuple(vars(m)) for m in own.modules()]
    return seen


def assert_same(*case: Any, **options: Any) -> None:
    """Compares both in float64, up to the order of sums."""
    module, batch, *rest = case
    found = outcome(module, copy.deepcopy(batch), *rest, **options)
    with without_cache():
        expected = outcome(module, copy.deepcopy(batch), *rest, **options)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("pattern", ["head", "last/head", "head/full"])
@pytest.mark.parametrize("name", NETWORKS)
def test_bitwise_equal(name: str, pattern: str, fuse: bool) -> None:
    module, batch = NETWORKS[name](), tasks(1, torch.float32)
    matrices = sum(p.dim() > 1 for p in module.parameters())
    pattern = pattern.replace("last", "0" * (matrices - 2) + "11")
    for make in (FirstOrder, Recursion, Reptile):
        found = outcome(module, batch, pattern, make, fuse=fuse)
        with without_cache():
            expected = outcome(module, batch, pattern, make, fuse=fuse)
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("inner", [SGD(0.1, STEPS, momentum=0.5), Adam(0.05, STEPS, eps=1e-3)])
@pytest.mark.parametrize("name", NETWORKS)
def test_equal_up_to_rounding(name: str, inner: Any) -> None:
    """One backward pass through the prefix instead of one per step changes the order of sums."""
    assert_same(NETWORKS[name]().double(), tasks(2), "head", Exact, inner=inner)


OPTIONS: dict[str, dict[str, Any]] = {
    "autocast": {"autocast": torch.bfloat16},
    "checkpoint": {"checkpoint": True},
    "checkpoint, not fused": {"checkpoint": True, "fuse": False},
    "learned rates": {"inner": MetaSGD(0.1, STEPS)},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "in place"])
def test_bitwise_equal_with_options(name: str, option: str) -> None:
    module, batch = NETWORKS[name](), tasks(1, torch.float32)
    found, expected = [], []
    for pattern in ("head", "head/full"):
        options = copy.deepcopy(OPTIONS[option])
        found += outcome(module, batch, pattern, FirstOrder, **options)
        with without_cache():
            options = copy.deepcopy(OPTIONS[option])
            expected += outcome(module, batch, pattern, FirstOrder, **options)
    assert all(map(torch.equal, found, expected))


class Around(nn.Module):
    """A chain that is called in an unusual way."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(16, 8))
        self.head = nn.Linear(8, WAYS)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.call(self.chain, x))


def without_grad_first(chain: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        mean = chain(x).mean(0)
    return chain(x) - mean


def with_other_weights(chain: nn.Module, x: Tensor) -> Tensor:
    values = {name: p * 0.9 for name, p in chain.named_parameters()}
    return functional_call(chain, values, (x,)) + chain(x)


CALLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "input changed": lambda chain, x: chain(x.mul_(0.9)),
    "output changed": lambda chain, x: chain(x).mul_(0.9) * 1,
    "new input": lambda chain, x: chain(x + 1),
    "two inputs": lambda chain, x: chain(x) + chain(-x),
    "without grad first": without_grad_first,
    "with other weights": with_other_weights,
    "parts of it": lambda chain, x: chain[2](chain[1](chain[0](x)))
    + chain(x)[:, : len(chain)].sum(),
}


@pytest.mark.parametrize("call", CALLS)
def test_unusual_calls_of_a_prefix(call: str) -> None:
    module, batch = Around(CALLS[call]).double(), tasks(2)
    for make in (FirstOrder,) if call == "input changed" else (FirstOrder, Exact):
        assert_same(module, batch, "head", make)


class Shared(nn.Module):
    """A chain that two others start with, and that is also called by itself."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        first = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8))
        self.one = nn.Sequential(first, nn.Tanh())
        self.two = nn.ModuleList(
            [first, nn.Sequential(first, nn.Linear(8, 8)) if nested else first]
        )
        self.head = nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(x) + self.two[0](x) * self.two[1](x) + self.two[0](x))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("pattern", ["head", "one.0.3,head", "one.0.3"])
def test_shared_submodules(pattern: str, nested: bool) -> None:
    module, batch = Shared(nested).double(), tasks(2)
    assert_same(module, batch, pattern, FirstOrder)
