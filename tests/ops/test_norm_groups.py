"""Several tasks in one call of the BatchNorm-ReLU-pool block, and ``vmap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fastmeta import ops, reference
from fastmeta.ops import norm
from tests.helpers.norm_cases import grouped_norm_inputs, norm_inputs
from tests.ops.func_transforms import TRANSFORMS, batch_of, element, gradient, waves

EPS = 1e-3
# (G, N, C, H, W): awkward sizes, groups of one image, groups larger than a unit of work.
SIZES = [(1, 3, 2, 4, 5), (2, 1, 1, 2, 2), (3, 2, 5, 3, 3), (5, 31, 3, 7, 2), (2, 3, 33, 31, 33)]
POOL = pytest.mark.parametrize("pool", [False, True], ids=["plain", "pool"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def block(x: Tensor, weight: Tensor, bias: Tensor, *, pool: bool = False) -> Tensor:
    return ops.batch_norm_relu(x, weight, bias, EPS, pool=pool)[0]


def reference_block(x: Tensor, weight: Tensor, bias: Tensor, *, pool: bool = False) -> Tensor:
    return reference.batch_norm_relu(x, weight, bias, EPS, pool)[0]


def group_by_group(
    function: Callable[..., tuple[Tensor, ...]], tensors: list[Tensor]
) -> list[Tensor]:
    """Results of ``function`` for each group separately, put together again."""
    x, weight, bias = tensors
    groups = zip(x.chunk(len(weight)), weight, bias, strict=True)
    outputs = zip(*(function(*group) for group in groups), strict=True)
    return [(torch.cat if o[0].dim() == 4 else torch.stack)(o) for o in outputs]


def derivatives(op: Callable[..., Any], pool: bool) -> Callable[..., tuple[Tensor, ...]]:
    """All outputs, the gradients of the first output, and their gradients."""

    def results(*tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        outputs = op(*leaves, EPS, pool)
        first = torch.autograd.grad(outputs[0].square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        return tuple(t.detach() for t in (*outputs, *first, *second))

    return results


@POOL
@DTYPES
def test_bitwise_equal_to_one_call_per_group(dtype: torch.dtype, pool: bool) -> None:
    for groups, *shape in SIZES:
        tensors = grouped_norm_inputs(groups, tuple(shape), dtype, EPS)
        run = derivatives(norm._flat, pool)
        for found, expected in zip(run(*tensors), group_by_group(run, tensors), strict=True):
            assert torch.equal(found, expected)


@POOL
@DTYPES
def test_bitwise_equal_for_any_number_of_threads(dtype: torch.dtype, pool: bool) -> None:
    tensors = grouped_norm_inputs(3, (5, 13, 21, 22), dtype, EPS)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(derivatives(norm._flat, pool)(*tensors))
    for other in results[1:]:
        assert all(torch.equal(f, e) for f, e in zip(other, results[0], strict=True))


@POOL
def test_the_reference_has_the_same_groups(pool: bool) -> None:
    tensors = grouped_norm_inputs(3, (2, 5, 4, 6), torch.float64, EPS)
    ours, references = (derivatives(op, pool) for op in (norm._flat, reference.batch_norm_relu))
    torch.testing.assert_close(ours(*tensors), references(*tensors))
    torch.testing.assert_close(list(references(*tensors)), group_by_group(references, tensors))


@POOL
def test_gradcheck_and_third_derivatives(pool: bool) -> None:
    tensors = grouped_norm_inputs(2, (2, 3, 4, 3), torch.float64, EPS)
    leaves = [t.requires_grad_() for t in tensors]
    assert gradcheck(lambda *t: block(*t, pool=pool), leaves, check_forward_ad=True)
    assert gradgradcheck(lambda *t: block(*t, pool=pool), leaves, check_fwd_over_rev=True)
    results = []
    for function in (block, reference_block):
        value = function(*leaves, pool=pool).square().sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(g.square().sum() for g in grads)
        results.append(value.detach())
    torch.testing.assert_close(*results)


@POOL
def test_compiled(pool: bool) -> None:
    leaves = grouped_norm_inputs(2, (3, 2, 4, 5), torch.float64, EPS)
    leaves = [t.requires_grad_() for t in leaves]
    torch._dynamo.reset()

    def value(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *t: function(*t, pool=pool).square().sum()

    for transform in (lambda f: f, gradient):
        run = torch.compile(transform(value(block)), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(run(*leaves), transform(value(reference_block))(*leaves))


# --- vmap -----------------------------------------------------------------------------------------


@pytest.fixture
def calls():
    """Counts the calls of the forward kernel."""
    with mock.patch.object(norm, "kernels", wraps=norm.kernels) as counted:
        yield counted.norm_forward.default


def elements(size: int, groups: int | None = None) -> list[list[Tensor]]:
    """The inputs of each element of a batch for ``vmap``."""
    shape = (3, 2, 4, 5)
    if groups is None:
        return [norm_inputs(shape) for _ in range(size)]
    return [grouped_norm_inputs(groups, shape) for _ in range(size)]


IN_DIMS = [
    *((0, 0, 0), (1, 1, 1), (-1, -1, -1), (2, 0, 1)),
    *((0, None, None), (None, 0, None), (None, None, 1), (3, None, 0), (None, 0, 0)),
]


def scalar(function: Callable[..., Tensor], pool: bool) -> Callable[..., Tensor]:
    """The block as a scalar function."""
    return waves(lambda *tensors: function(*tensors, pool=pool))


@POOL
@pytest.mark.parametrize("groups", [None, 2])
def test_vmap_is_one_call(groups: int | None, pool: bool, calls) -> None:
    batch = elements(4, groups)
    for dims in IN_DIMS:
        calls.reset_mock()
        tensors = batch_of(batch, dims)
        found = torch.vmap(
            lambda *t: ops.batch_norm_relu(*t, EPS, pool=pool), in_dims=dims, out_dims=(0, 1, 0)
        )(*tensors)
        assert calls.call_count == 1
        found = (found[0], found[1].movedim(1, 0), found[2])
        for i in range(4):
            expected = reference.batch_norm_relu(*element(tensors, dims, i), EPS, pool)
            torch.testing.assert_close(tuple(f[i] for f in found), expected)


@POOL
@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_vmap_of_derivatives(transform: str, groups: int | None, pool: bool) -> None:
    batch = elements(3, groups)
    ours, references = (TRANSFORMS[transform](scalar(f, pool)) for f in (block, reference_block))
    for dims in IN_DIMS:
        tensors = batch_of(batch, dims)
        found = torch.vmap(ours, in_dims=dims)(*tensors)
        for i in range(3):
            torch.testing.assert_close(
                torch.utils._pytree.tree_map(lambda f, i=i: f[i], found),
                references(*element(tensors, dims, i)),
            )


@POOL
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_derivatives_of_vmap(transform: str, pool: bool) -> None:
    tensors = batch_of(elements(3), (0, 0, None))

    def total(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        batched = torch.vmap(scalar(function, pool), in_dims=(0, 0, None))
        return lambda *t: batched(*t).square().sum()

    results = [TRANSFORMS[transform](total(f))(*tensors) for f in (block, reference_block)]
    torch.testing.assert_close(*results)


@POOL
@pytest.mark.parametrize("groups", [None, 2])
def test_nested_vmap_is_one_call(groups: int | None, pool: bool, calls) -> None:
    batches = [batch_of(elements(3, groups), (1, 0, 0)) for _ in range(2)]
    outer = batch_of(batches, (0, None, 1))
    run = torch.vmap(
        torch.vmap(lambda *t: block(*t, pool=pool), in_dims=(1, 0, 0)), in_dims=(0, None, 1)
    )
    found = run(*outer)
    assert calls.call_count == 1
    slopes = torch.vmap(
        torch.vmap(gradient(scalar(block, pool)), in_dims=(1, 0, 0)), in_dims=(0, None, 1)
    )(*outer)
    for i in range(2):
        for k in range(3):
            own = element(element(outer, (0, None, 1), i), (1, 0, 0), k)
            torch.testing.assert_close(found[i, k], reference_block(*own, pool=pool))
            torch.testing.assert_close(
                tuple(s[i, k] for s in slopes), gradient(scalar(reference_block, pool))(*own)
            )


@POOL
def test_vmap_of_images_in_any_order(pool: bool) -> None:
    x, weight, bias = batch_of(elements(3), (0, 0, 0))
    orders = (
        x.flatten(0, 1).to(memory_format=torch.channels_last).view(x.shape),
        x.transpose(0, 3).contiguous().transpose(0, 3),
        torch.stack([x, x], -1)[..., 1],
    )
    expected = torch.vmap(lambda *t: block(*t, pool=pool))(x, weight, bias)
    for other in orders:
        found = torch.vmap(lambda *t: block(*t, pool=pool))(other, weight, bias)
        assert torch.equal(found, expected)


def test_an_empty_vmap_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="non-empty"):
        torch.vmap(block)(torch.randn(0, 3, 2, 4, 4), torch.rand(0, 2), torch.rand(0, 2))


ERRORS = {
    "groups do not divide": (lambda: (torch.randn(5, 4, 2, 2), *torch.rand(2, 3, 4)), "3 groups"),
    "no groups": (lambda: (torch.randn(5, 4, 2, 2), *torch.rand(2, 0, 4)), "0 groups"),
    "channels": (lambda: (torch.randn(6, 4, 2, 2), *torch.rand(2, 3, 5)), "one value per channel"),
    "dimensions": (
        lambda: (torch.randn(6, 4, 2, 2), *torch.rand(2, 1, 3, 4)),
        r"\(G, C\).*got shape \(1, 3, 4\)",
    ),
    "bias": (lambda: (torch.randn(6, 4, 2, 2), torch.rand(3, 4), torch.rand(4)), "weight's shape"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    make, message = ERRORS[name]
    with pytest.raises(RuntimeError, match=message):
        ops.batch_norm_relu(*make())
