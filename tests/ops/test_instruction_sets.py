"""Kernels on NumPy arrays: every instruction set, and every half-precision number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastmeta
from fastmeta import _testing, reference
from fastmeta.ops import HeadSimilarity
from tests.helpers.head_cases import MIXTURE, SIZES, check, problem
from tests.helpers.norm_cases import grouped_norm_inputs
from tests.ops.attention_cases import Config
from tests.ops.conv_cases import DIRECT, TOLERANCE, WINOGRAD, conv_inputs

SETS = _testing.instruction_sets()


def test_the_best_set_of_this_processor_is_active() -> None:
    assert fastmeta.build_info().cpu_isa == SETS[-1]
    assert SETS[0] == "baseline"


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("tasks", "columns"), [(1, 1), (3, 31), (5, 33), (33, 1021), (2, 10007)])
def test_every_set_is_correct(isa: str, dtype: type, tasks: int, columns: int) -> None:
    g = np.random.standard_normal((tasks, columns)).astype(dtype)
    coef = np.random.standard_normal(tasks).astype(dtype)
    exact = g.astype(np.float64)
    size = np.abs(exact) @ np.abs(exact).T
    # NumPy's own sums are float64, too.
    tolerance = (4 if dtype is np.float32 else 64) * np.finfo(dtype).eps
    third = columns // 3
    parts = _testing.gram(isa, g, [0, third, columns])
    for part, columns_ in zip(parts, (exact[:, :third], exact[:, third:]), strict=True):
        assert (np.abs(part - columns_ @ columns_.T) <= tolerance * size).all()
    stats = _testing.mean_similarity(isa, g)
    assert (np.abs(stats[:, 0] - exact @ exact.sum(0)) <= tolerance * size.sum(1)).all()
    assert (np.abs(stats[:, 1] - (exact * exact).sum(1)) <= tolerance * np.diag(size)).all()
    sums = np.abs(coef.astype(np.float64)) @ np.abs(exact)
    found = _testing.combine(isa, g, coef)
    assert (np.abs(found - coef.astype(np.float64) @ exact) <= tasks * tolerance * sums).all()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pool", [False, True])
def test_every_set_normalises(isa: str, dtype: type, pool: bool) -> None:
    tolerance = 3e-5 if dtype is np.float32 else 1e-11
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    for groups, *shape in ((1, 1, 2, 2, 2), (1, 3, 21, 7, 7), (2, 2, 16, 5, 33), (3, 1, 3, 31, 70)):
        x, weight, bias = grouped_norm_inputs(groups, tuple(shape), kind)
        dz = torch.randn_like(x[:, :, : shape[2] // 2, : shape[3] // 2] if pool else x)
        u = torch.randn_like(x)
        images = {k: _channels_last(t) for k, t in {"x": x, "dz": dz, "u": u}.items()}
        found = _testing.norm(isa, weight=weight.numpy(), bias=bias.numpy(), pool=pool, **images)
        x, weight, bias, dz, u = (t.double() for t in (x, weight, bias, dz, u))
        block = (x, weight, bias, 1e-3, pool)
        expected = [
            *reference.batch_norm_relu(*block),
            *reference.norm_backward(dz, *block),
            *reference.norm_second(dz, u, weight, bias, *block),
        ]
        for f, e in zip(found, expected, strict=True):
            e = _channels_last(e) if e.dim() == 4 else e.numpy()
            assert np.abs(f - e).max() <= tolerance * (1 + np.abs(e).max())


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("width", [1, 16, 37, 300])
def test_every_set_runs_blocks(isa: str, dtype: torch.dtype, width: int) -> None:
    def check_all(found: list[np.ndarray], expected: list[torch.Tensor]) -> None:
        for f, e in zip(found, expected, strict=True):
            assert np.abs(f - e.numpy()).max() <= 10 * TOLERANCE[dtype] * (1 + e.abs().max())

    rows, weights = torch.randn(4, 2, 9, width, dtype=dtype), torch.randn(4, 2, width, dtype=dtype)
    x, dy, tdy, tx = rows.double()
    weight, bias, tweight, tbias = weights.double()
    for centred in (True, False):
        found = _testing.row_norm(isa, list(rows.numpy()), list(weights.numpy()), centred)
        how = (centred, 1e-3)
        expected = [
            reference.row_norm(x, weight, bias, *how),
            *reference.row_norm_backward(dy, x, weight, *how),
            *reference.row_norm_second(dy, tdy, tx, tweight, tbias, x, weight, *how),
        ]
        check_all(found, expected)
    for number, kind in ((3, "silu"), (5, "gelu"), (6, "gelu_tanh")):
        found = _testing.activation(isa, number, *rows.numpy())
        expected = [
            reference.activation(x, kind),
            reference.activation_backward(dy, x, kind),
            reference.activation_backward(tx, x, kind),
            reference.activation_backward_tangent(dy, tdy, tx, x, kind),
        ]
        check_all(found, expected)
    dloss, tdloss = torch.randn(2, 9, dtype=dtype)
    target = torch.arange(9) % width
    (z, tz), others = rows[:2, 0], (dloss.numpy(), tdloss.numpy())
    found = _testing.cross_entropy(isa, z.numpy(), target.numpy(), *others, tz.numpy())
    z, tz, dloss, tdloss = (t.double() for t in (z, tz, dloss, tdloss))
    expected = [
        reference.row_losses(z, target, -100, 0.2),
        reference.cross_entropy_backward(dloss, z, target, -100, 0.2),
        *reference.cross_entropy_second(dloss, tdloss, tz, z, target, -100, 0.2),
    ]
    check_all(found, expected)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_set_convolves(isa: str, dtype: torch.dtype, stride: int) -> None:
    for groups, shape in ((1, DIRECT[-1]), (3, DIRECT[-2]), (1, WINOGRAD[-1]), (2, WINOGRAD[1])):
        x, weight, bias = conv_inputs(shape, dtype, groups)
        dy = torch.randn_like(reference.conv3x3(x, weight, bias, stride))
        found = _testing.conv(
            isa, _channels_last(x), weight.numpy(), bias.numpy(), _channels_last(dy), stride
        )
        exact = [t.double() for t in (x, weight, bias, dy)]
        expected, sizes = (
            [
                reference.conv3x3(*own[:3], stride),
                reference.conv_input(own[3], own[1], *x.shape[2:], stride),
                *reference.conv_weight(own[0], own[3], stride, groups),
            ]
            for own in (exact, [t.abs() for t in exact])
        )
        for f, e, size in zip(found, expected, sizes, strict=True):
            e = _channels_last(e) if e.dim() == 4 else e.numpy()
            assert np.linalg.norm(f - e) <= TOLERANCE[dtype] * size.norm()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_set_computes_head_similarities(isa: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        args = problem(size, dtype=dtype)
        found = _testing.head_similarity(isa, *(t.numpy() for t in args))
        results = HeadSimilarity(*(torch.from_numpy(f) for f in found))
        check(results, args, "cross_entropy", **MIXTURE)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("causal", "window"), [(False, 0), (True, 0), (True, 30)])
def test_every_set_attends(isa: str, dtype: type, causal: bool, window: int) -> None:
    tolerance = 1e-5 if dtype is np.float32 else 1e-13
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    for queries, keys, width, value_width in ((1, 1, 1, 1), (33, 95, 19, 6), (130, 70, 16, 64)):
        config = Config(queries, keys, 4, 2, width, value_width)
        q, k, v = config.tensors(kind)
        dout, tdout = (torch.randn(2, 4, queries, value_width, dtype=kind) for _ in range(2))
        tensors = [q, k, v, dout, tdout, *config.tensors(kind)]
        found = _testing.attention(isa, *(t.numpy() for t in tensors), causal, window)
        q, k, v, dout, tdout, tq, tk, tv = (t.double() for t in tensors)
        given = (q, k, v, None, causal, window, 0.3)
        expected = [
            reference.attention(*given),
            *reference.attention_backward(dout, *given),
            *reference.attention_second(dout, tdout, tq, tk, tv, *given),
        ]
        size = max(e.norm() for e in expected)
        for f, e in zip(found, expected, strict=True):
            assert np.linalg.norm(f - e.numpy()) <= tolerance * (e.norm() + 0.1 * size)


def _channels_last(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).contiguous().numpy()


@pytest.mark.parametrize("isa", SETS)
def test_ops_are_bound_to_these_kernels(isa: str) -> None:
    g = torch.randn(9, 5003)
    if isa == SETS[-1]:
        expected = torch.from_numpy(_testing.gram(isa, g.numpy(), [0, 5003]))
        assert torch.equal(fastmeta.ops.gram(g), expected)


def test_unknown_set() -> None:
    with pytest.raises(ValueError, match="'sse9' is not available"):
        _testing.gram("sse9", np.zeros((1, 1), np.float32), [0, 1])


KINDS = {
    "half": (torch.float16, _testing.widen_half, _testing.narrow_half),
    "bfloat16": (torch.bfloat16, _testing.widen_bfloat16, _testing.narrow_bfloat16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_65536_patterns_widen_as_in_torch(kind: str) -> None:
    dtype, widen, _ = KINDS[kind]
    bits = np.arange(65536, dtype=np.uint16)
    expected = torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy()
    np.testing.assert_array_equal(widen(bits), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_narrowing_rounds_as_in_torch(kind: str) -> None:
    dtype, widen, narrow = KINDS[kind]
    exact = widen(np.arange(65536, dtype=np.uint16))
    finite = exact[np.isfinite(exact)]
    near = np.nextafter(finite, np.float32(np.inf)), np.nextafter(finite, np.float32(-np.inf))
    ordered = np.unique(finite)
    middle = ((ordered[1:].astype(np.float64) + ordered[:-1]) / 2).astype(np.float32)
    random = np.random.randint(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([exact, *near, middle, random])
    found = torch.from_numpy(narrow(values).view(np.int16)).view(dtype)
    expected = torch.from_numpy(values).to(dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    known = ~expected.isnan()
    assert torch.equal(found[known].view(torch.int16), expected[known].view(torch.int16))
