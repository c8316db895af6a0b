"""The emulated CUDA kernels against the reference implementations: every dtype, awkward sizes, and
several orders of blocks and threads, none of which may change a bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from emulated import SEEDS, array, name, run
from fastmeta._testing import cuda
from op_cases import DTYPES, acc, thirds
from torch import Tensor

from fastmeta import reference

TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,  # one thread's sum of up to 16 terms is float32
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
# Tasks and columns around the tile, warp and block sizes, and none; the last two have several
# chunks, rows of the first of them begin at 16 bytes.
SIZES = [(0, 7), (3, 0), (1, 1), (2, 31), (3, 33), (33, 65), (5, 1021), (3, 5117), (2, 9000)]


def rows(dtype: torch.dtype, tasks: int, columns: int) -> Tensor:
    """A view into a wider buffer: the gaps between its rows are poisoned."""
    whole = torch.full((tasks, columns + 3), float("nan"), dtype=dtype)
    whole[:, :columns] = torch.randn(tasks, columns, dtype=torch.float64).to(dtype)
    return whole[:, :columns]


def close(found: Tensor, exact: Tensor, size: Tensor) -> None:
    assert found.shape == exact.shape
    if not found.numel():
        return
    bound = TOLERANCE[found.dtype] * size.abs().clamp_min(size.abs().max() * 1e-2) + 1e-300
    assert ((found.double() - exact).abs() <= bound).all(), (found, exact)


def largest(t: Tensor) -> Tensor:
    """The largest magnitude, everywhere."""
    return t.abs().max().expand_as(t) if t.numel() else t


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tasks", "columns"), SIZES)
def test_gram(dtype: torch.dtype, tasks: int, columns: int) -> None:
    g, bounds = rows(dtype, tasks, columns), thirds(columns)
    (found,) = run(
        [(4, tasks, tasks)],
        acc(dtype),
        lambda out, seed: cuda.gram(name(dtype), array(g), bounds, out[0], seed),
    )
    wide = g.double()
    close(found, reference.gram(wide, bounds), reference.gram(wide.abs(), bounds))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tasks", "columns"), SIZES)
def test_row_similarity(dtype: torch.dtype, tasks: int, columns: int) -> None:
    a, b, bounds = rows(dtype, tasks, columns), rows(dtype, tasks, columns), thirds(columns)
    (found,) = run(
        [(tasks, 4, 3)],
        acc(dtype),
        lambda out, seed: cuda.row_similarity(
            name(dtype), array(a), array(b), bounds, out[0], seed
        ),
    )
    wide = a.double(), b.double()
    exact = reference.row_similarity(*wide, bounds)
    close(found, exact, reference.row_similarity(*(w.abs() for w in wide), bounds))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tasks", "columns"), [*SIZES, (131, 40)])
def test_mean_similarity(dtype: torch.dtype, tasks: int, columns: int) -> None:
    g = rows(dtype, tasks, columns)
    (found,) = run(
        [(tasks, 2)],
        acc(dtype),
        lambda out, seed: cuda.mean_similarity(name(dtype), array(g), out[0], seed),
    )
    exact, size = (reference.mean_similarity(w) for w in (g.double(), g.double().abs()))
    close(found, exact, size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("buffers", [1, 2])
@pytest.mark.parametrize(("tasks", "columns"), SIZES)
def test_combine(dtype: torch.dtype, buffers: int, tasks: int, columns: int) -> None:
    g = [rows(dtype, tasks, columns) for _ in range(buffers)]
    bounds = thirds(columns)
    coef = torch.randn(tasks, 4, buffers, dtype=acc(dtype))
    cut = columns // 4
    found = run(
        [(cut,), (0,), (columns - cut,)],
        dtype,
        lambda out, seed: cuda.combine(
            name(dtype), [array(b) for b in g], array(coef), bounds, out, seed
        ),
    )
    wide = [b.double() for b in g]
    size = reference.combine([b.abs() for b in wide], coef.double().abs(), bounds)
    exact = reference.combine(wide, coef.double(), bounds)
    close(torch.cat(found), exact, size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_rows_begin_changes_no_bit(dtype: torch.dtype) -> None:
    """Aligned rows are read 16 bytes at a time, others element by element."""
    tasks, columns = 3, 5000
    values = torch.randn(2, tasks, columns, dtype=torch.float64).to(dtype)
    coef, bounds = torch.randn(tasks, 1, 2, dtype=acc(dtype)), (0, columns)

    def results(gap: int, shift: int) -> list[bytes]:
        memory = torch.empty(2 * tasks * (columns + gap) + shift, dtype=dtype)[shift:]
        a, b = memory.view(2, tasks, columns + gap)[..., :columns].copy_(values)
        calls = {
            (tasks, 1, 3): lambda o, s: cuda.row_similarity(
                name(dtype), array(a), array(b), bounds, o[0], s
            ),
            (tasks, 2): lambda o, s: cuda.mean_similarity(name(dtype), array(a), o[0], s),
            (1, tasks, tasks): lambda o, s: cuda.gram(name(dtype), array(a), bounds, o[0], s),
        }
        found = [run([shape], acc(dtype), call)[0] for shape, call in calls.items()]
        found += run(
            [(columns - 7,), (7,)],
            dtype,
            lambda o, s: cuda.combine(name(dtype), [array(a), array(b)], array(coef), bounds, o, s),
        )
        return [array(f).tobytes() for f in found]

    aligned = results(0, 0)
    assert results(1, 0) == aligned
    assert results(0, 1) == aligned
    assert results(8, 8) == aligned


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("each", [False, True])
def test_where_tensors_begin_changes_no_bit(dtype: torch.dtype, each: bool) -> None:
    shape = tasks, columns = 2, 2 * 1037
    values = torch.randn(3, *shape, dtype=torch.float64).to(dtype)
    rate, eps = (
        torch.rand(columns if each else 1, dtype=acc(dtype)),
        torch.rand(2, dtype=acc(dtype)),
    )

    def shifted(t: Tensor, shift: int) -> np.ndarray:
        memory = torch.empty(t.numel() + shift, dtype=t.dtype)[shift:].view(t.shape)
        return array(memory.copy_(t))

    def results(*shifts: int) -> list[bytes]:
        a, b, c = (shifted(v, shift) for v, shift in zip(values, shifts, strict=False))
        alpha = shifted(rate, shifts[3])
        calls = (
            lambda o, s: cuda.hvp_perturb(name(dtype), a, b, array(eps), *o, s),
            lambda o, s: cuda.hvp_difference(name(dtype), a, b, c, array(eps), alpha, o[0], s),
            lambda o, s: cuda.inner_step(
                name(dtype), [*a], [*b], [alpha] * tasks, [False, True], [*o[0]], s
            ),
        )
        found = [run([shape] * 2, dtype, call)[: 1 + (k == 0)] for k, call in enumerate(calls)]
        return [array(f).tobytes() for outputs in found for f in outputs]

    aligned = results(0, 0, 0, 0)
    for shifts in itertools.product((0, 1), repeat=4):
        assert results(*shifts) == aligned


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("each", [False, True])
def test_inner_step(dtype: torch.dtype, each: bool) -> None:
    sizes, frozen = [1, 1023, 0, 1025, 31, 33], [False, True, False, False, False, True]
    theta, grad = ([torch.randn(n).to(dtype) for n in sizes] for _ in range(2))
    alpha = [torch.rand(n if each else 1, dtype=acc(dtype)) for n in sizes]
    found = run(
        [(n,) for n in sizes],
        dtype,
        lambda out, seed: cuda.inner_step(
            name(dtype), *([array(t) for t in ts] for ts in (theta, grad, alpha)), frozen, out, seed
        ),
    )
    wide = ([t.double() for t in ts] for ts in (theta, grad, alpha))
    for f, e in zip(found, reference.inner_step(*wide, frozen), strict=True):
        close(f, e, e.abs() + 2)
    assert torch.equal(found[1], theta[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tasks", "columns"), [(0, 3), (2, 0), (1, 1), (31, 33), (3, 347)])
def test_hvp(dtype: torch.dtype, tasks: int, columns: int) -> None:
    v, a, b = (torch.randn(tasks, columns).to(dtype) for _ in range(3))
    eps = torch.rand(tasks, dtype=acc(dtype)) + 0.5
    eps[1:2] = 0
    found = run(
        [(tasks, columns)] * 2,
        dtype,
        lambda out, seed: cuda.hvp_perturb(name(dtype), array(a), array(v), array(eps), *out, seed),
    )
    wide = [t.double() for t in (v, a, b, eps)]
    for f, e in zip(found, reference.hvp_perturb(wide[1], wide[0], wide[3]), strict=True):
        close(f, e, e.abs() + 4)
    for rates in (1, columns):
        alpha = torch.rand(rates, dtype=acc(dtype))
        (found,) = run(
            [(tasks, columns)],
            dtype,
            lambda out, seed, alpha=alpha: cuda.hvp_difference(
                name(dtype), *(array(t) for t in (v, a, b, eps, alpha)), out[0], seed
            ),
        )
        exact = reference.hvp_difference(*wide, alpha.double())
        close(found, exact, exact.abs() + 8)


@pytest.mark.parametrize("bytes_", [1, 2, 8])
def test_pack(bytes_: int) -> None:
    kinds = {1: torch.uint8, 2: torch.int16, 8: torch.float64}
    sizes = [2, 0, 34, 16384, 16386, 50_000]
    whole = [torch.randint(0, 100, (n + 8,)).to(kinds[bytes_]) for n in sizes]
    for shift in (0, 2):  # both ends aligned to 16 bytes or not
        sources = [t[shift : shift + n] for t, n in zip(whole, sizes, strict=True)]
        for seed in SEEDS:
            targets = [torch.full_like(t, 101)[: n + 4] for t, n in zip(whole, sizes, strict=True)]
            cuda.pack(
                [s.numpy() for s in sources],
                [t[:n].numpy() for t, n in zip(targets, sizes, strict=True)],
                seed,
            )
            for s, t, n in zip(sources, targets, sizes, strict=True):
                assert torch.equal(t[:n], s)
                assert (t[n:] == 101).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("magnitude", range(4))
@pytest.mark.parametrize("tasks", [0, 1, 31, 131])
def test_gsl_coefficients(dtype: torch.dtype, magnitude: int, tasks: int) -> None:
    u, v = torch.randn(2, tasks, 50, dtype=torch.float64)
    stats = reference.row_similarity(u, v, (0, 10, 50)).to(dtype)
    weight, rate = torch.rand(tasks, dtype=dtype), torch.full((1,), 0.3, dtype=dtype)
    options = (0.7, 0.2, magnitude, 0.5, 1e-12)
    (found,) = run(
        [(tasks, 2, 2)],
        dtype,
        lambda out, seed: cuda.gsl_coefficients(
            name(dtype), array(stats), array(weight), array(rate), *options, out[0], seed
        ),
    )
    exact = reference.gsl_coefficients(stats.double(), weight.double(), rate.double(), *options)
    close(found, exact, 10 * largest(exact))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rule", range(3))
@pytest.mark.parametrize("tasks", [0, 1, 9, 33])
def test_task_weights(dtype: torch.dtype, rule: int, tasks: int) -> None:
    g = torch.randn(tasks, 50, dtype=torch.float64)
    stats = reference.mean_similarity(g).to(dtype)
    (found,) = run(
        [(tasks,)],
        dtype,
        lambda out, seed: cuda.task_weights(
            name(dtype), array(stats), rule, 0.8, 0.01, 0.5, out[0], seed
        ),
    )
    exact = reference.task_weights(stats.double(), rule, 0.8, 0.01, 0.5)
    close(found, exact, 10 * largest(exact))


def test_chunks_that_are_added_in_groups() -> None:
    """A segment of 34 chunks, two groups of which have two, and short ones."""
    dtype, bounds = torch.float32, (0, 33_793, 33_796, 33_796, 35_000)
    g, h = rows(dtype, 2, bounds[-1]), rows(dtype, 2, bounds[-1])
    wide, sizes = (g.double(), h.double()), (g.double().abs(), h.double().abs())

    def check(
        shape: tuple[int, ...], call: Callable[..., Any], exact: Callable[..., Tensor]
    ) -> None:
        (found,) = run([shape], dtype, lambda out, seed: call(out[0], seed))
        close(found, exact(*wide), exact(*sizes))

    check(
        (2, 4, 3),
        lambda o, s: cuda.row_similarity(name(dtype), array(g), array(h), bounds, o, s),
        lambda a, b: reference.row_similarity(a, b, bounds),
    )
    check(
        (2, 2),
        lambda o, s: cuda.mean_similarity(name(dtype), array(g), o, s),
        lambda a, _: reference.mean_similarity(a),
    )
    check(
        (4, 2, 2),
        lambda o, s: cuda.gram(name(dtype), array(g), bounds, o, s),
        lambda a, _: reference.gram(a, bounds),
    )


def test_more_tensors_and_segments_than_one_launch_takes() -> None:
    """Tables are passed as kernel parameters, in groups: 256 segments, 400 steps, 512 pieces."""
    columns, tasks = 540, 1
    g, bounds = torch.randn(tasks, columns), list(range(0, columns + 1, 2))
    bounds[5] = bounds[6] = bounds[4]  # and two are empty
    (found,) = run(
        [(270, tasks, tasks)],
        torch.float32,
        lambda out, seed: cuda.gram("float32", array(g), bounds, out[0], seed),
    )
    torch.testing.assert_close(found, reference.gram(g, bounds))
    (found,) = run(
        [(tasks, 270, 3)],
        torch.float32,
        lambda out, seed: cuda.row_similarity("float32", array(g), array(g), bounds, out[0], seed),
    )
    torch.testing.assert_close(found, reference.row_similarity(g, g, bounds))
    coef = torch.randn(tasks, 270, 1)
    parts = run(
        [(1,)] * columns,
        torch.float32,
        lambda out, seed: cuda.combine("float32", [array(g)], array(coef), bounds, out, seed),
    )
    torch.testing.assert_close(torch.cat(parts), reference.combine([g], coef, bounds))
    theta = [torch.randn(3) for _ in range(410)]
    rate = [torch.full((1,), 0.5)] * 410
    moved = run(
        [(3,)] * 410,
        torch.float32,
        lambda out, seed: cuda.inner_step(
            "float32",
            *([array(t) for t in ts] for ts in (theta, theta, rate)),
            [False] * 410,
            out,
            seed,
        ),
    )
    torch.testing.assert_close(torch.stack(moved), torch.stack(theta) / 2)
