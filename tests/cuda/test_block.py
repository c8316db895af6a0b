"""CUDA kernels of normalisation, activations and cross entropy, emulated, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastmeta._testing import cuda
from torch import Tensor

from fastmeta import reference
from tests.cuda.emulation import array, name, run
from tests.ops.attention_cases import TOLERANCE

KINDS = {"silu": 3, "gelu": 5, "gelu_tanh": 6}
CASES = [
    *((dtype, True) for dtype in TOLERANCE),
    (torch.float32, False),
]


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def check(found: list[Tensor], expected: Any, dtype: torch.dtype) -> None:
    for f, e in zip(found, expected, strict=True):
        error = (f.double() - e).norm()
        assert error <= TOLERANCE[dtype] * max(1.0, float(e.norm()))


def run_mixed(
    shapes: list[tuple[int, ...]], dtypes: list[torch.dtype], call: Any, dtype: torch.dtype
) -> list[Tensor]:
    """`run` for outputs of several dtypes: each dtype's memory is guarded in a run of its own."""
    results: dict[int, Tensor] = {}
    for own in dict.fromkeys(dtypes):
        places = [i for i, d in enumerate(dtypes) if d == own]

        def one(outputs: list, seed: int, places: list[int] = places) -> None:
            left = iter(outputs)
            call(
                [
                    next(left) if i in places else array(torch.empty(shape, dtype=dtypes[i]))
                    for i, shape in enumerate(shapes)
                ],
                seed,
            )

        results |= dict(zip(places, run([shapes[i] for i in places], own, one), strict=True))
    return [results[i] for i in range(len(shapes))]


@pytest.mark.parametrize(("dtype", "along"), CASES, ids=str)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1, 2), (2, 9, 33), (1, 3, 300)])
def test_row_norm(
    sizes: tuple[int, int, int], centred: bool, dtype: torch.dtype, along: bool
) -> None:
    """`along`: whether `dy` has a tangent, too."""
    groups, _, width = sizes
    wide = reference.accumulation_dtype(dtype)
    weights = wide if groups == 2 else dtype
    x, dy, tdy, tx = (random(*sizes, dtype=dtype) for _ in range(4))
    weight, bias, tweight, tbias = (random(groups, width, dtype=weights) for _ in range(4))

    def call(outputs: list, seed: int) -> None:
        tensors = [array(t) for t in (x, dy, tdy, tx, weight, bias, tweight, tbias)]
        cuda.row_norm(name(dtype), name(weights), tensors, along, centred, 1e-3, outputs, seed)

    rows, columns, stats = sizes, (groups, width), (groups, 2, sizes[1])
    grads = [(rows, dtype), (columns, weights), (columns, weights)]
    kinds = [(rows, dtype), (stats, wide), *grads, (rows, dtype), (rows, dtype), *grads]
    found = run_mixed([s for s, _ in kinds], [d for _, d in kinds], call, dtype)
    del found[1]
    x, dy, tdy, tx, weight, bias, tweight, tbias = (
        t.double() for t in (x, dy, tdy, tx, weight, bias, tweight, tbias)
    )
    options = (centred, 1e-3)
    change = tdy if along else None
    second = reference.row_norm_second(dy, change, tx, tweight, tbias, x, weight, *options)
    expected = [
        reference.row_norm(x, weight, bias, *options),
        *reference.row_norm_backward(dy, x, weight, *options),
        second[0],
        *second,
    ]
    check(found, expected, dtype)


@pytest.mark.parametrize(("dtype", "along"), CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_activation(kind: str, dtype: torch.dtype, along: bool) -> None:
    x, dout, tdout, tx = (random(2073, dtype=dtype) for _ in range(4))
    x *= 3

    def call(outputs: list, seed: int) -> None:
        tensors = [array(t) for t in (x, dout, tdout, tx)]
        cuda.activation(name(dtype), KINDS[kind], tensors, along, outputs, seed)

    found = run([(2073,)] * 4, dtype, call)
    x, dout, tdout, tx = (t.double() for t in (x, dout, tdout, tx))
    change = tdout if along else torch.zeros_like(tdout)
    expected = [
        reference.activation(x, kind),
        reference.activation_backward(dout, x, kind),
        reference.activation_backward(tx, x, kind),
        reference.activation_backward_tangent(dout, change, tx, x, kind),
    ]
    check(found, expected, dtype)


@pytest.mark.parametrize(("dtype", "along"), CASES, ids=str)
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (5, 33), (3, 600)])
def test_cross_entropy(rows: int, classes: int, dtype: torch.dtype, along: bool) -> None:
    wide = reference.accumulation_dtype(dtype)
    z, tz = (random(rows, classes, dtype=dtype) for _ in range(2))
    dloss, tdloss = (random(rows, dtype=wide) for _ in range(2))
    target = torch.randint(classes, (rows,))
    target[rows // 2] = -7

    def call(outputs: list, seed: int) -> None:
        tensors = [array(t) for t in (z, tz, dloss, tdloss)]
        cuda.cross_entropy(name(dtype), tensors, target.numpy(), -7, 0.2, along, outputs, seed)

    kinds = [((rows,), wide)] * 2 + [((rows, classes), dtype)] + [((rows,), wide)] * 2
    kinds.append(((rows, classes), dtype))
    found = run_mixed([s for s, _ in kinds], [d for _, d in kinds], call, dtype)
    del found[1]
    z, tz, dloss, tdloss = (t.double() for t in (z, tz, dloss, tdloss))
    options = (target, -7, 0.2)
    tloss, tdz = reference.cross_entropy_second(dloss, tdloss if along else None, tz, z, *options)
    expected = [
        reference.row_losses(z, *options),
        reference.cross_entropy_backward(dloss, z, *options),
        tloss,
        tloss,
        tdz,
    ]
    check(found, expected, dtype)


def test_an_invalid_class_yields_nan() -> None:
    z, dloss, outputs = torch.randn(2, 3), torch.ones(2), [torch.empty(2) for _ in range(4)]
    dz = [torch.empty(2, 3) for _ in range(2)]
    out = [outputs[0], outputs[1], dz[0], outputs[2], outputs[3], dz[1]]
    tensors = [array(t) for t in (z, z, dloss, dloss)]
    target = torch.tensor([1, 3]).numpy()
    cuda.cross_entropy("float32", tensors, target, -7, 0.0, True, [array(t) for t in out], 1)
    for t in (outputs[0], outputs[3], *dz):
        assert t[0].isfinite().all()
        assert t[1].isnan().all()
