"""CUDA kernels over parameters and large tables, emulated on the CPU, against the reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fastmeta._testing import cuda
from torch import Tensor

from fastmeta import reference
from tests.cuda.emulation import SEEDS, array, name, run
from tests.cuda.packed_cases import close
from tests.helpers.op_cases import DTYPES, acc


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("each", [False, True])
def test_bitwise_equal_for_any_tensor_alignment(dtype: torch.dtype, each: bool) -> None:
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
@pytest.mark.parametrize("aligned", [False, True])
def test_adamw(dtype: torch.dtype, aligned: bool) -> None:
    lr, first, second, eps, decay, _ = settings = (0.1, 0.9, 0.99, 1e-3, 0.2, 3)
    rates = [1 - lr * decay, lr / (1 - first**4), first, 1 - first, second, 1 - second]
    rates += [1 - second**4, eps]
    sizes = [1, 1023, 0, 1025, 31, 33]
    for op, inputs, squares, outputs in (
        (reference.adamw_step, 4, 3, 3),
        (reference.adamw_adjoint, 6, 2, 4),
    ):
        lists = [
            [torch.randn(n + 1).to(dtype)[int(not aligned) :][:n] for n in sizes]
            for _ in range(inputs)
        ]
        lists[squares] = [t.square() + 0.1 for t in lists[squares]]
        lists[squares][0].zero_()  # an element that never had a gradient
        lists[squares - 2 if inputs == 6 else 1][0].zero_()
        found = run(
            [(n,) for n in sizes] * outputs,
            dtype,
            lambda out, seed, lists=lists, outputs=outputs: cuda.adamw(
                name(dtype),
                rates,
                [[array(t) for t in ts] for ts in lists],
                [out[k * len(sizes) : (k + 1) * len(sizes)] for k in range(outputs)],
                seed,
            ),
        )
        exact = op(*([t.double() for t in ts] for ts in lists), *settings)
        for f, e in zip(found, exact, strict=True):
            close(f, e, e.abs() + 10)


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


def test_more_tensors_and_segments_than_fit_one_launch() -> None:
    """Tables are kernel parameters, in groups of 256 segments, 400 steps or 512 pieces."""
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
