"""The sequence step's launches with the CUDA kernels of the normalisations, emulated on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fastmeta._testing import cuda
from torch import Tensor

from fastmeta import ops
from fastmeta.ops import _sequence_layers
from tests.cuda.emulation import array, name, run
from tests.cuda.test_norm import images
from tests.helpers.recorded_graphs import sequence_step_as_on_cuda
from tests.helpers.sequence_cases import check, examples, network, options


class Emulated:
    """The ops of the block, by its emulated kernels."""

    def norm_forward(self, x: Tensor, weight: Tensor, bias: Tensor, *how: Any) -> list[Tensor]:
        return _run("norm_forward", [_output(x, how), weight, weight], [], x, weight, bias, *how)

    def norm_backward(self, dz: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> list[Tensor]:
        gradient = [array(images(dz))]
        return _run("norm_backward", [x, weight, weight], gradient, x, weight, *rest)

    def norm_second(self, dz: Tensor, u: Tensor, *rest: Any) -> list[Tensor]:
        p, q, x, weight, *others = rest
        given = [array(images(dz)), [array(images(u)), *(array(t[None]) for t in (p, q))]]
        return _run("norm_second", [dz, x, weight], given, x, weight, *others)


def _output(x: Tensor, how: Any) -> Tensor:
    return x.new_empty(*x.shape[:2], *(n // 2 for n in x.shape[2:])) if how[-1] else x


def _run(op: str, likes: list[Tensor], given: list[Any], x: Tensor, *rest: Any) -> list[Tensor]:
    *channels, eps, pool = rest
    point = [array(images(x)), *(array(t[None]) for t in channels)]
    shapes = [tuple(images(t).shape if t.dim() == 4 else (1, *t.shape)) for t in likes]
    found = run(
        shapes,
        x.dtype,
        lambda out, seed: getattr(cuda, op)(name(x.dtype), *given, *point, eps, pool, out, seed),
    )
    return [t.permute(0, 3, 1, 2) if t.dim() == 4 else t[0] for t in found]


@pytest.mark.parametrize("order", ["second order", "all similarities of all layers"])
@pytest.mark.parametrize("network_name", ["strided", "pooled", "per step"])
def test_matches_the_reference(
    network_name: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence_step_as_on_cuda(monkeypatch)
    emulated = Emulated()
    kernels = {
        n: SimpleNamespace(default=getattr(emulated, n)) for n in dir(emulated) if "norm" in n
    }
    monkeypatch.setattr(_sequence_layers, "kernels", SimpleNamespace(**kernels))
    net = network(network_name)
    args = [net.params, *examples(net, "cross_entropy", tasks=2, shots=(3, 4))]
    how = options(net, order=order, steps=1)
    check(ops.sequence_step(*args, **how), args, how)
