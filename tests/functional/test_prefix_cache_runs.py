"""How often each layer runs with the prefix cache."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta import TaskBatch
from fastmeta.metagrad import Reptile
from tests.functional.prefix_cache_cases import NETWORKS, STEPS, flat, learner
from tests.helpers.problems import tasks

WEIGHT = {
    "aten.convolution.default": 1,
    "fastmeta.conv_forward.default": 1,
    "aten.addmm.default": 2,
}


class Products(TorchDispatchMode):
    """Counts convolutions and matrix products by the address of their weight."""

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
    adapted = model.adaptation.adapts(STEPS, list(module.parameters()))
    frozen = [p for p, m in zip(module.parameters(), adapted, strict=True) if not m and p.dim() > 1]
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


def test_layers_after_an_adapted_one_run_in_every_step() -> None:
    assert runs(NETWORKS["Conv4"](), "00101") == [1, 1, STEPS]
    assert runs(NETWORKS["Conv4"](), "10000") == [STEPS] * 4
    assert runs(NETWORKS["MLP"](), "0100") == [1, STEPS, STEPS]


@pytest.mark.parametrize("fuse", [True, False])
def test_only_pure_torch_modules_are_cached(fuse: bool) -> None:
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


def test_reptile_caches_support_and_query() -> None:
    module, batch = NETWORKS["Conv4"](), tasks(1, torch.float32)
    with Products() as products:
        learner(module, "head", Reptile()).meta_gradient(batch)
    assert products.seen[module.features[0][0].weight.data_ptr()] == 2


def test_a_module_is_restored_after_an_error() -> None:
    module, batch = flat(), tasks(1, torch.float32)
    before = [dict(vars(m)) for m in module.modules()]
    bad = TaskBatch(batch.support_x[..., :1], batch.support_y, batch.query_x, batch.query_y)
    with pytest.raises(RuntimeError):
        learner(module, "head").step(bad)
    assert all(vars(m) == b for m, b in zip(module.modules(), before, strict=True))
    assert len(module) == len(before) - 1
    assert runs(module) == [1, 1]
