"""The frozen prefix runs once for all inner steps, and nothing else changes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from problems import WAYS, tasks
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adam, LayerPattern, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact, FirstOrder, MetaGradient, Recursion, Reptile
from fastmeta.models import MLP, Conv4

STEPS = 3
PREFIX_CACHE = "fastmeta.functional.module.use_prefix_cache"


class Residual(nn.Module):
    """A user's block of two chains."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs, track_running_stats=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 5, padding=2),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.GroupNorm(1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.path(x) + self.shortcut(x), 0.1)


def conv(inputs: int, outputs: int, statistics: bool = False) -> list[nn.Module]:
    norm = nn.BatchNorm2d(outputs, track_running_stats=statistics)
    return [nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.ReLU(inplace=True)]


def flat(statistics: bool = False, *between: nn.Module) -> nn.Module:
    """One chain of convolutions, with something between them."""
    layers = [*conv(1, 4, statistics), nn.MaxPool2d(2), *between, *conv(4, 4, statistics)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, WAYS))


def shared() -> nn.Module:
    """One activation at several places, and a matrix in two."""
    act, first = nn.Tanh(), nn.Linear(16, 16)
    second = nn.Linear(16, 16)
    second.weight = first.weight
    return nn.Sequential(nn.Flatten(), first, act, second, act, nn.Linear(16, WAYS))


def twice() -> nn.Module:
    """A chain that comes two times in another."""
    part = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    return nn.Sequential(nn.Flatten(), part, part, nn.Linear(16, WAYS))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Conv4": lambda: Conv4(1, 4, WAYS, hidden=5),
    "Conv4 strided": lambda: Conv4(1, 4, WAYS, hidden=5, downsample="stride"),
    "Conv4 with statistics": lambda: Conv4(1, 4, WAYS, hidden=5, batch_norm_stats=True),
    "MLP": lambda: MLP(16, WAYS, (7, 6, 5)),
    "one chain": flat,
    "nested": lambda: nn.Sequential(nn.Sequential(flat()[:4], flat()[4:-2]), *flat()[-2:]),
    "residual": lambda: nn.Sequential(
        Residual(1, 4), Residual(4, 4), nn.Flatten(), nn.Linear(64, WAYS)
    ),
    "shared": shared,
    "twice": twice,
    "dropout": lambda: flat(False, nn.Dropout(0.3)),
    "in place": lambda: flat(False, nn.Dropout2d(0.3, inplace=True)),
}


def learner(
    module: nn.Module, pattern: str, metagrad: MetaGradient | None = None, **options: Any
) -> MetaLearner:
    inner = options.pop("inner", SGD(0.1, STEPS))
    return MetaLearner(
        module,
        F.cross_entropy,
        adaptation=LayerPattern(inner, pattern),
        metagrad=metagrad or FirstOrder(),
        aggregation=Mean(),
        **{"engine": "loop", **options},
    )


@contextmanager
def forgetting() -> Iterator[None]:
    with mock.patch(PREFIX_CACHE, return_value=nullcontext()):
        yield


def outcome(module: nn.Module, batch: TaskBatch, pattern: str, make: Any, **options: Any) -> list:
    """Gradient, results and buffers, and a prediction, of a module of its own."""
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
    """In float64, but for the order of sums."""
    module, batch, *rest = case
    found = outcome(module, copy.deepcopy(batch), *rest, **options)
    with forgetting():
        expected = outcome(module, copy.deepcopy(batch), *rest, **options)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("pattern", ["head", "last/head", "head/full"])
@pytest.mark.parametrize("name", NETWORKS)
def test_same_bits(name: str, pattern: str, fuse: bool) -> None:
    module, batch = NETWORKS[name](), tasks(1, torch.float32)
    matrices = sum(p.dim() > 1 for p in module.parameters())
    pattern = pattern.replace("last", "0" * (matrices - 2) + "11")
    for make in (FirstOrder, Recursion, Reptile):
        found = outcome(module, batch, pattern, make, fuse=fuse)
        with forgetting():
            expected = outcome(module, batch, pattern, make, fuse=fuse)
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("inner", [SGD(0.1, STEPS, momentum=0.5), Adam(0.05, STEPS, eps=1e-3)])
@pytest.mark.parametrize("name", NETWORKS)
def test_exact_but_for_rounding(name: str, inner: Any) -> None:
    """One backward pass through the prefix instead of one for each step: other sums."""
    assert_same(NETWORKS[name]().double(), tasks(2), "head", Exact, inner=inner)


OPTIONS: dict[str, dict[str, Any]] = {
    "autocast": {"autocast": torch.bfloat16},
    "checkpoint": {"checkpoint": True},
    "checkpoint, not fused": {"checkpoint": True, "fuse": False},
    "learned rates": {"inner": MetaSGD(0.1, STEPS)},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "in place"])
def test_same_bits_with_options(name: str, option: str) -> None:
    module, batch = NETWORKS[name](), tasks(1, torch.float32)
    found, expected = [], []
    for pattern in ("head", "head/full"):
        options = copy.deepcopy(OPTIONS[option])
        found += outcome(module, batch, pattern, FirstOrder, **options)
        with forgetting():
            options = copy.deepcopy(OPTIONS[option])
            expected += outcome(module, batch, pattern, FirstOrder, **options)
    assert all(map(torch.equal, found, expected))


WEIGHT = {
    "aten.convolution.default": 1,
    "fastmeta.conv_forward.default": 1,
    "aten.addmm.default": 2,
}


class Products(TorchDispatchMode):
    """Counts convolutions and matrix products by where their weight lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) in WEIGHT:
            self.seen[args[WEIGHT[str(func)]].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def runs(module: nn.Module, pattern: str = "head", **options: Any) -> list[int]:
    """How often each frozen layer runs in the inner loop of a task."""
    model, batch = learner(module, pattern, **options), tasks(1, torch.float32)
    with Products() as products:
        model.adapt(batch.support_x[0], batch.support_y[0])
    moving = model.adaptation.adapts(STEPS, list(module.parameters()))
    frozen = [p for p, m in zip(module.parameters(), moving, strict=True) if not m and p.dim() > 1]
    return [products.seen[p.data_ptr()] for p in frozen]


@pytest.mark.parametrize("options", [{}, {"fuse": False}], ids=str)
def test_a_frozen_prefix_runs_once(options: dict[str, Any]) -> None:
    for name in ("Conv4", "Conv4 strided", "MLP", "one chain", "nested"):
        module = NETWORKS[name]()
        layers = len(runs(module, **options)) + 1
        assert runs(module, **options) == [1] * (layers - 1)
        for k in range(1, layers):
            bits = "0" * k + "1" * (layers - k)
            assert runs(module, bits, **options) == [1] * k
            assert runs(module, f"{bits}/head", **options)[:k] == [1] * k
    assert runs(NETWORKS["shared"](), **options) == [2]  # in two places


def test_what_follows_an_adapted_layer_runs_in_every_step() -> None:
    assert runs(NETWORKS["Conv4"](), "00101") == [1, 1, STEPS]
    assert runs(NETWORKS["Conv4"](), "10000") == [STEPS] * 4
    assert runs(NETWORKS["MLP"](), "0100") == [1, STEPS, STEPS]


@pytest.mark.parametrize("fuse", [True, False])
def test_only_torchs_modules_that_do_nothing_else_are_kept(fuse: bool) -> None:
    every = [STEPS, STEPS]
    assert runs(flat(), fuse=fuse) == [1, 1]
    assert runs(flat(False, nn.Dropout(0.3)), fuse=fuse) == [1, STEPS]
    assert runs(flat(False, nn.Dropout(0.3)).eval(), fuse=fuse) == [1, STEPS]
    assert runs(flat(True), fuse=fuse) == [1, STEPS]  # running statistics
    assert runs(flat(True).eval(), fuse=fuse) == [1, 1]
    assert runs(flat(False, nn.RReLU()), fuse=fuse) == [1, STEPS]
    hooked, replaced, subclass = flat(), flat(), flat()
    hooked[0].register_forward_hook(lambda *_: None)
    replaced[0].forward = replaced[0].forward
    subclass[0].__class__ = type("Own", (nn.Conv2d,), {})
    for module in (hooked, replaced, subclass):
        assert runs(module, fuse=fuse) == every
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert runs(flat(), fuse=fuse) == every
    finally:
        hook.remove()
    blocks = runs(NETWORKS["residual"](), fuse=fuse)
    assert blocks == [1, 1, 1, STEPS, STEPS, STEPS]


def test_reptile_keeps_both_sets() -> None:
    module, batch = NETWORKS["Conv4"](), tasks(1, torch.float32)
    with Products() as products:
        learner(module, "head", Reptile()).meta_gradient(batch)
    assert products.seen[module.features[0][0].weight.data_ptr()] == 2


class Around(nn.Module):
    """A chain, and something unusual around it."""

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
def test_nobody_can_tell(call: str) -> None:
    module, batch = Around(CALLS[call]).double(), tasks(2)
    for make in (FirstOrder,) if call == "input changed" else (FirstOrder, Exact):
        assert_same(module, batch, "head", make)


class Shared(nn.Module):
    """A chain that two others begin with, and one that stands alone, too."""

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
def test_chains_that_share_parts(pattern: str, nested: bool) -> None:
    module, batch = Shared(nested).double(), tasks(2)
    assert_same(module, batch, pattern, FirstOrder)


def test_a_module_is_left_as_it_was_after_an_error() -> None:
    module, batch = flat(), tasks(1, torch.float32)
    before = [dict(vars(m)) for m in module.modules()]
    bad = TaskBatch(batch.support_x[..., :1], batch.support_y, batch.query_x, batch.query_y)
    with pytest.raises(RuntimeError):
        learner(module, "head").step(bad)
    assert all(vars(m) == b for m, b in zip(module.modules(), before, strict=True))
    assert len(module) == len(before) - 1
    assert runs(module) == [1, 1]
