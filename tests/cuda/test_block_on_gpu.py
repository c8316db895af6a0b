"""Normalisation, activations and losses on a GPU against the reference on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastmeta import ops
from tests.cuda.gpu import needs_gpu, without_synchronization
from tests.ops.attention_cases import TOLERANCE
from tests.ops.block_cases import CASES
from tests.ops.test_block import SIZES, derivatives, sized

pytestmark = needs_gpu


@pytest.mark.parametrize(("rows", "width"), [*SIZES, (33, 5000)])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "layer_norm",
        "rms_norm",
        "gelu",
        "gelu tanh",
        "silu",
        "cross_entropy",
        "linear_cross_entropy",
    ],
)
def test_against_float64(name: str, dtype: torch.dtype, rows: int, width: int) -> None:
    case = sized(CASES[name], rows, width)
    if case.target is not None:
        case = replace(case, options={"reduction": "sum", "ignore_index": width})
    tensors, (function, expected) = case.tensors(dtype), case.functions()
    if width == 1 and "norm" in name:  # differences of rounding errors
        tensors = [t.abs() + 1 for t in tensors]
    results = list(derivatives(function, [t.cuda() for t in tensors]))
    exact = list(derivatives(expected, [t.double() for t in tensors]))
    size = max(float(e.norm()) for e in exact)
    for found, e in zip(results, exact, strict=True):
        assert found.is_cuda
        assert found.dtype == dtype
        error = (found.detach().cpu().double() - e).norm()
        assert error <= 4 * TOLERANCE[dtype] * max(float(e.norm()), 0.1 * size, 1.0)


def test_nothing_waits_for_the_gpu() -> None:
    x, w = torch.randn(2, 5, 8, device="cuda")
    y = torch.tensor([0, 4, -100, 1, 2], device="cuda")
    leaf = x.clone().requires_grad_()

    def call() -> None:
        h = ops.gelu(ops.layer_norm(leaf, (8,)))
        loss = ops.cross_entropy(h, y) + ops.linear_cross_entropy(h, w, y)
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        grad.square().sum().backward()

    call()
    without_synchronization(call)
