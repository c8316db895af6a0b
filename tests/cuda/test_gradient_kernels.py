"""CUDA kernels over packed gradients, emulated on the CPU, against the reference implementations.

They run with every dtype, awkward sizes, and several orders of blocks and threads, which must agree
bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastmeta._testing import cuda
from torch import Tensor

from fastmeta import reference
from tests.cuda.emulation import array, name, run
from tests.cuda.packed_cases import SIZES, close, largest, rows
from tests.helpers.op_cases import DTYPES, acc, thirds


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
def test_bitwise_equal_for_any_row_alignment(dtype: torch.dtype) -> None:
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("magnitude", range(4))
@pytest.mark.parametrize("tasks", [0, 1, 31, 131])
def test_gsl_coefficients(dtype: torch.dtype, magnitude: int, tasks: int) -> None:
    u, v = torch.randn(2, tasks, 50, dtype=torch.float64)
    u[:, 20:25] *= 1e-6  # zero up to `noise`
    v[:, 25:30] *= 1e-6
    v[:, 30:35] *= 1e-3
    stats = reference.row_similarity(u, v, (0, 10, 20, 25, 30, 35, 50)).to(dtype)
    weight, rate = torch.rand(tasks, dtype=dtype), torch.full((1,), 0.3, dtype=dtype)
    options = (0.7, 0.2, magnitude, 0.5, 1e-12, 1e-5)
    (found,) = run(
        [(tasks, 6, 2)],
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
    """A segment of 34 chunks, two groups of which have two chunks, and short segments."""
    dtype, bounds = torch.float32, (0, 33_793, 33_796, 33_796, 35_000)
    g, h = rows(dtype, 2, bounds[-1]), rows(dtype, 2, bounds[-1])
    wide, sizes = (g.double(), h.double()), (g.double().abs(), h.double().abs())

    def check(
        shape: tuple[int, ...], call: Callable[..., Any], reference_op: Callable[..., Tensor]
    ) -> None:
        (found,) = run([shape], dtype, lambda out, seed: call(out[0], seed))
        close(found, reference_op(*wide), reference_op(*sizes))

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
