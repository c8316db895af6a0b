"""Several tasks in one call of the 3x3 convolution, and ``vmap``, which makes such calls."""

from __future__ import annotations

from functools import partial
from itertools import product
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastmeta.ops import conv as module
from tests.ops.conv_cases import conv, conv_inputs, derivatives, directions, reference_conv
from tests.ops.func_transforms import TRANSFORMS, Function, batch_of, element, gradient, waves

# (G, N, C, O, H, W): one image per group, several chunks per group, direct and Winograd.
SIZES = [
    *((1, 3, 2, 4, 5, 6), (3, 1, 1, 2, 1, 2), (2, 5, 15, 17, 3, 3), (5, 2, 3, 33, 7, 2)),
    *((2, 3, 16, 17, 31, 33), (3, 2, 33, 16, 14, 7), (2, 9, 3, 16, 14, 15)),
]
SHAPE = (3, 2, 3, 4, 5)
STRIDES = pytest.mark.parametrize("stride", [1, 2])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
GROUPS = pytest.mark.parametrize("groups", [None, 2])


def parts(tensors: list[Tensor], groups: int) -> list[list[Tensor]]:
    """The inputs of each group: its images, and its part of tensors with one element per group."""
    return [[t.chunk(groups)[g] if t.dim() == 4 else t[g] for t in tensors] for g in range(groups)]


@STRIDES
@DTYPES
def test_bitwise_equal_to_one_call_per_group(dtype: torch.dtype, stride: int) -> None:
    op = partial(conv, stride=stride)
    for groups, *shape in SIZES:
        tensors, up, moves = directions(conv_inputs(shape, dtype, groups), stride)
        found = parts(derivatives(op, tensors, up, moves), groups)
        of_groups = (parts(part, groups) for part in (tensors, [up], moves))
        for own, (t, (u,), m) in zip(found, zip(*of_groups, strict=True), strict=True):
            expected = derivatives(op, t, u, m)
            assert all(torch.equal(f, e) for f, e in zip(own, expected, strict=True))


@STRIDES
@DTYPES
def test_bitwise_equal_for_any_number_of_threads(dtype: torch.dtype, stride: int) -> None:
    for groups, *shape in SIZES[-3:]:
        point = directions(conv_inputs(shape, dtype, groups), stride)
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(derivatives(partial(conv, stride=stride), *point))
        for other in results[1:]:
            assert all(torch.equal(f, e) for f, e in zip(other, results[0], strict=True))


@STRIDES
def test_the_reference_has_the_same_groups(stride: int) -> None:
    tensors = conv_inputs(SHAPE, groups=3)
    y = reference_conv(*tensors, stride=stride)
    for g, own in enumerate(parts(tensors, 3)):
        torch.testing.assert_close(y.chunk(3)[g], reference_conv(*own, stride=stride))


@STRIDES
def test_non_finite_values_stay_in_their_group(stride: int) -> None:
    for groups, *shape in SIZES:
        tensors, up, moves = directions(conv_inputs(shape, groups=groups), stride)
        for poisoned in (tensors[0], tensors[1], up):
            before = poisoned.clone()
            poisoned[0] = float("nan")
            found = parts(derivatives(partial(conv, stride=stride), tensors, up, moves), groups)
            assert not all(t.isfinite().all() for t in found[0])
            assert all(t.isfinite().all() for own in found[1:] for t in own)
            poisoned.copy_(before)


# --- vmap -----------------------------------------------------------------------------------------


@pytest.fixture
def calls():
    """Counts the calls of the kernels."""
    with mock.patch.object(module, "kernels", wraps=module.kernels) as counted:
        yield lambda: [
            getattr(counted, f"conv_{name}").default.call_count
            for name in ("forward", "input", "weight")
        ]


BATCHED = [dims for dims in product((None, 1), repeat=3) if dims != (None, None, None)]
IN_DIMS = [
    *(dims for dims in product((None, 0, 1), repeat=3) if dims != (None, None, None)),
    *((-1, -1, -1), (3, None, 0), (2, 3, 1), (None, -2, None)),
]


def elements(size: int, groups: int | None = None) -> list[list[Tensor]]:
    """The inputs of each element of a batch for ``vmap``."""
    return [conv_inputs(SHAPE, groups=groups) for _ in range(size)]


@STRIDES
@GROUPS
@pytest.mark.parametrize("dims", IN_DIMS, ids=str)
def test_vmap_is_one_call(
    dims: tuple[int | None, ...], groups: int | None, stride: int, calls
) -> None:
    tensors = batch_of(elements(4, groups), dims)
    function = partial(conv, stride=stride)
    found = torch.vmap(function, in_dims=dims)(*tensors)
    assert calls() == [1, 0, 0]
    slopes = torch.vmap(gradient(waves(function)), in_dims=dims)(*tensors)
    assert calls() == [2, 1, 1]
    for i in range(4):
        own = element(tensors, dims, i)
        torch.testing.assert_close(found[i], reference_conv(*own, stride=stride))
        expected = gradient(waves(partial(reference_conv, stride=stride)))(*own)
        torch.testing.assert_close(tuple(s[i] for s in slopes), expected)


@pytest.mark.parametrize("dims", [(0, None), (None, 1), (2, 0)], ids=str)
def test_vmap_without_bias(dims: tuple[int | None, ...], calls) -> None:
    tensors = batch_of([own[:2] for own in elements(4)], dims)
    found = torch.vmap(gradient(waves(conv)), in_dims=dims)(*tensors)
    assert calls() == [1, 1, 1]
    for i in range(4):
        expected = gradient(waves(reference_conv))(*element(tensors, dims, i))
        torch.testing.assert_close(tuple(f[i] for f in found), expected)


@STRIDES
@GROUPS
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_vmap_of_derivatives(transform: str, groups: int | None, stride: int) -> None:
    batch = elements(2, groups)
    ours, references = (
        TRANSFORMS[transform](waves(partial(f, stride=stride))) for f in (conv, reference_conv)
    )
    for dims in BATCHED:
        tensors = batch_of(batch, dims)
        found = torch.vmap(ours, in_dims=dims)(*tensors)
        for i in range(2):
            expected = references(*element(tensors, dims, i))
            torch.testing.assert_close(tree_map(lambda f, i=i: f[i], found), expected)


@STRIDES
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_derivatives_of_vmap(transform: str, stride: int) -> None:
    for dims in ((0, 0, None), (0, None, None), (None, 1, 0)):
        tensors = batch_of(elements(3), dims)

        def total(function: Function, dims: tuple[int | None, ...] = dims) -> Function:
            batched = torch.vmap(waves(partial(function, stride=stride)), in_dims=dims)
            return lambda *t: batched(*t).square().sum()

        results = [TRANSFORMS[transform](total(f))(*tensors) for f in (conv, reference_conv)]
        torch.testing.assert_close(*results)


@GROUPS
@pytest.mark.parametrize("inner", [(1, 0, 0), (0, None, 0), (None, 2, None)], ids=str)
def test_nested_vmap_is_one_call(inner: tuple[int | None, ...], groups: int | None, calls) -> None:
    for outer in ((0, None, 1), (None, 1, 0), (0, 0, 0)):
        before = calls()
        tensors = batch_of([batch_of(elements(3, groups), inner) for _ in range(2)], outer)
        found = torch.vmap(torch.vmap(conv, in_dims=inner), in_dims=outer)(*tensors)
        assert calls()[0] == before[0] + 1
        slope = gradient(waves(conv))
        slopes = torch.vmap(torch.vmap(slope, in_dims=inner), in_dims=outer)(*tensors)
        assert [a - b for a, b in zip(calls(), before, strict=True)] == [2, 1, 1]
        for i, k in product(range(2), range(3)):
            own = element(element(tensors, outer, i), inner, k)
            torch.testing.assert_close(found[i, k], reference_conv(*own))
            expected = gradient(waves(reference_conv))(*own)
            torch.testing.assert_close(tuple(s[i, k] for s in slopes), expected)


@STRIDES
def test_vmap_of_images_in_any_order(stride: int) -> None:
    x, weight, bias = batch_of(elements(3), (0, 0, 0))
    run = torch.vmap(partial(conv, stride=stride))
    orders = (
        x.flatten(0, 1).to(memory_format=torch.channels_last).view(x.shape),
        x.transpose(0, 3).contiguous().transpose(0, 3),
        torch.stack([x, x], -1)[..., 1],
    )
    for other in orders:
        assert torch.equal(run(other, weight, bias), run(x, weight, bias))


@STRIDES
def test_vmap_with_shared_weights(stride: int) -> None:
    """The images of all elements are one batch, bitwise equal to a call for each."""
    x, weight, bias = batch_of(elements(3), (0, None, None))
    found = torch.vmap(partial(conv, stride=stride), in_dims=(0, None, None))(x, weight, bias)
    assert all(
        torch.equal(f, conv(own, weight, bias, stride)) for f, own in zip(found, x, strict=True)
    )


def test_an_empty_vmap_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="non-empty"):
        torch.vmap(conv)(torch.randn(0, 3, 2, 4, 4), torch.rand(0, 5, 2, 3, 3))
