"""3x3 convolutions against torch: values, first and second derivatives, layouts, errors."""

from __future__ import annotations

from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastmeta import ops, reference
from fastmeta.backend import kernels
from fastmeta.ops import conv as module
from tests.ops.conv_cases import (
    DIRECT,
    TOLERANCE,
    WINOGRAD,
    conv,
    conv_inputs,
    derivatives,
    directions,
    exact,
)

STRIDES = pytest.mark.parametrize("stride", [1, 2])
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def torch_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    return F.conv2d(x, weight, bias, stride, 1)


def agree(tensors: list[Tensor], stride: int) -> None:
    """Compares an op and its first and second derivatives with torch in float64."""
    point = directions(tensors, stride)
    found = derivatives(partial(conv, stride=stride), *point)
    expected, sizes = exact(partial(torch_conv, stride=stride), *point)
    dtype = tensors[0].dtype
    for f, e, size in zip(found, expected, sizes, strict=True):
        assert f.dtype == dtype
        assert f.shape == e.shape
        assert (f.double() - e).norm() <= TOLERANCE[dtype] * size


@STRIDES
@DTYPES
def test_values_and_gradients(dtype: torch.dtype, stride: int) -> None:
    for shape in (*DIRECT, *WINOGRAD):
        agree(conv_inputs(shape, dtype), stride)


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 4), *[st.integers(1, 40)] * 2, *[st.integers(1, 12)] * 2),
    st.sampled_from((1, 2)),
    st.sampled_from(list(TOLERANCE)),
)
def test_any_size(shape: tuple[int, ...], stride: int, dtype: torch.dtype) -> None:
    agree(conv_inputs(shape, dtype), stride)


@STRIDES
def test_without_bias(stride: int) -> None:
    for shape in (DIRECT[-1], WINOGRAD[0]):
        agree(conv_inputs(shape)[:2], stride)


@STRIDES
def test_long_sums(stride: int) -> None:
    """Rounding errors of equal numbers do not accumulate over the pixels of a weight's gradient."""
    for shape in ((7, 3, 16, 84, 83), (7, 16, 16, 84, 83)):
        x, weight, bias = (torch.full_like(t, 0.1) for t in conv_inputs(shape, torch.float32))
        up = torch.full_like(torch_conv(x, weight, bias, stride), 0.1)
        point = ([x, weight, bias], up, [x, weight, bias])
        found = derivatives(partial(conv, stride=stride), *point)
        expected, _ = exact(partial(torch_conv, stride=stride), *point)
        for f, e in zip(found, expected, strict=True):
            assert (f - e).norm() <= 3e-6 * e.norm()


# --- inputs ---------------------------------------------------------------------------------------


@pytest.fixture
def calls():
    """Counts the calls of the kernels."""
    with mock.patch.object(module, "kernels", wraps=module.kernels) as counted:
        yield counted


@pytest.mark.parametrize("needed", [(1,), (0,), (2,), (0, 2), (1, 2), (0, 1, 2)])
def test_only_gradients_that_are_needed(needed: tuple[int, ...], calls) -> None:
    tensors = conv_inputs((3, 4, 5, 6, 7))
    for i in needed:
        tensors[i].requires_grad_()
    leaves = [tensors[i] for i in needed]
    expected = torch.autograd.grad(torch_conv(*tensors).square().sum(), leaves)
    y = conv(*tensors)
    found = torch.autograd.grad(y.square().sum(), leaves)
    torch.testing.assert_close(found, expected)
    assert calls.conv_input.default.call_count == (0 in needed)
    assert calls.conv_weight.default.call_count == bool({1, 2} & set(needed))


def test_no_gradient_of_images_for_the_first_layer(calls) -> None:
    x, *parameters = conv_inputs((3, 4, 5, 6, 7))
    for p in parameters:
        p.requires_grad_()
    first = torch.autograd.grad(conv(x, *parameters).square().sum(), parameters, create_graph=True)
    torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
    assert calls.conv_input.default.call_count == 0


def test_without_gradients() -> None:
    tensors = [t.requires_grad_() for t in conv_inputs((3, 4, 5, 6, 7))]
    with torch.no_grad():
        y = conv(*tensors)
    assert y.grad_fn is None
    torch.testing.assert_close(y, torch_conv(*tensors).detach())


@STRIDES
@DTYPES
@pytest.mark.parametrize("shape", [(3, 5, 7, 6, 9), (3, 17, 18, 6, 9), (3, 1, 5, 6, 9)])
def test_memory_formats_give_the_same_result(
    shape: tuple[int, ...], dtype: torch.dtype, stride: int
) -> None:
    op = partial(conv, stride=stride)
    tensors, up, moves = directions(conv_inputs(shape, dtype), stride)
    up = torch.ones(1, dtype=dtype).expand_as(up)  # as in the backward pass of sum()
    expected = derivatives(op, tensors, up, moves)
    for order in (last, spread, backwards):
        found = derivatives(op, [order(t) for t in tensors], up, [order(m) for m in moves])
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    assert expected[0].is_contiguous(memory_format=torch.channels_last)


def last(t: Tensor) -> Tensor:
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


def spread(t: Tensor) -> Tensor:
    """Makes a tensor non-contiguous."""
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"), dtype=t.dtype)
    wide[..., 1::2] = t
    return wide[..., 1::2]


def backwards(t: Tensor) -> Tensor:
    dims = list(range(t.dim()))[::-1]
    return t.permute(dims).contiguous().permute(dims)


@STRIDES
@DTYPES
@pytest.mark.parametrize("shape", [(7, 3, 13, 31, 33), (7, 17, 33, 31, 33), (2, 65, 33, 5, 3)])
def test_bitwise_equal_for_any_number_of_threads(
    shape: tuple[int, ...], dtype: torch.dtype, stride: int
) -> None:
    point = directions(conv_inputs(shape, dtype), stride)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(derivatives(partial(conv, stride=stride), *point))
    for other in results[1:]:
        assert all(torch.equal(f, e) for f, e in zip(other, results[0], strict=True))


# --- non-finite values ----------------------------------------------------------------------------

VALUES = pytest.mark.parametrize("value", [float("nan"), float("inf")])


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, value: float) -> tuple[Tensor, ...]:
    """Images with this value in the first channel of the last one, weights, and its position."""
    x, weight, _ = conv_inputs(shape, dtype)
    x[-1, 0, 2 % shape[-2], 2 % shape[-1]] = value
    return x, weight, (~x.isfinite()).any(1, keepdim=True).double()


@VALUES
@STRIDES
@DTYPES
def test_non_finite_values_reach_their_neighbours(
    dtype: torch.dtype, stride: int, value: float
) -> None:
    ones = torch.ones(1, 1, 3, 3).double()
    for shape in (*DIRECT, *WINOGRAD):
        x, weight, mask = poisoned(shape, dtype, value)
        y = conv(x, weight, None, stride)
        assert ((torch_conv(mask, ones, None, stride) > 0) == ~y.isfinite()).all()
        h, w = (stride * (size - 1) + 1 for size in shape[-2:])
        dx = kernels.conv_input.default(x, weight.transpose(0, 1), h, w, stride)
        assert ((reference.conv_input(mask, ones, h, w, stride) > 0) == ~dx.isfinite()).all()
        # Winograd's method takes differences of infinities.
        for found in (y, dx):
            assert found.isnan().any() == (value != value or (shape in WINOGRAD and stride == 1))


@VALUES
@STRIDES
@DTYPES
def test_non_finite_values_stay_in_their_channel(
    dtype: torch.dtype, stride: int, value: float
) -> None:
    for shape in (*DIRECT, *WINOGRAD):
        x, weight, _ = poisoned(shape, dtype, value)
        dy = torch.rand_like(torch_conv(x, weight, None, stride))
        d_weight, d_bias = kernels.conv_weight.default(x, dy, stride, None)
        assert not d_weight[:, 0].isfinite().all()
        assert d_weight[:, 1:].isfinite().all()
        assert d_bias.isfinite().all()
        x[-1, 0] = 0
        dy[0, -1, 0, 0] = value
        d_weight, d_bias = kernels.conv_weight.default(x, dy, stride, None)
        assert not d_weight[-1].isfinite().all()
        assert d_weight[:-1].isfinite().all()
        assert d_bias.isfinite().tolist() == [True] * (len(d_bias) - 1) + [False]


# --- errors ---------------------------------------------------------------------------------------


def forward(x=(2, 3, 4, 5), weight=(6, 3, 3, 3), bias=None, stride=1, kind=torch.float32):
    """A call with tensors of these shapes, the images of this dtype."""
    b = None if bias is None else torch.rand(bias)
    return lambda: ops.conv3x3(torch.randn(x).to(kind), torch.randn(weight), b, stride=stride)


def backward(name, *shapes, rest, kind=torch.float32):
    """The same for another kernel, the first tensor of this dtype."""
    tensors = [torch.randn(shape) for shape in shapes]
    return lambda: getattr(kernels, name).default(tensors[0].to(kind), *tensors[1:], *rest)


IMAGES, WEIGHT = (2, 6, 4, 5), (6, 3, 3, 3)
OF_INPUT = partial(backward, "conv_input")
OF_WEIGHT = partial(backward, "conv_weight")
ERRORS = {
    "dimensions": (forward((3, 4, 5)), r"non-empty \(N, C, H, W\) images, got shape \(3, 4, 5\)"),
    "no images": (forward((0, 3, 4, 5)), "non-empty"),
    "no pixels": (forward((2, 3, 0, 5)), "non-empty"),
    "half": (forward(kind=torch.half), "images must be float32 or float64"),
    "stride": (forward(stride=3), "stride must be 1 or 2, got 3"),
    "no stride": (forward(stride=0), "stride must be 1 or 2, got 0"),
    "kernel height": (forward(weight=(6, 3, 5, 3)), r"weights \(out, in, 3, 3\).*\(6, 3, 5, 3\)"),
    "kernel width": (forward(weight=(6, 3, 3, 1)), r"got shape \(6, 3, 3, 1\)"),
    "weight dimensions": (forward(weight=(3, 3, 3)), r"got shape \(3, 3, 3\)"),
    "more weight dimensions": (forward(weight=(1, 1, 6, 3, 3, 3)), "expected weights"),
    "no weights": (forward(weight=(0, 3, 3, 3)), "expected weights"),
    "dtypes": (forward(kind=torch.double), "weights must have the dtype"),
    "channels": (forward((2, 4, 4, 5)), r"\(2, 4, 4, 5\) do not match weights \(6, 3, 3, 3\)"),
    "group channels": (forward((2, 4, 4, 5), (2, 6, 3, 3, 3)), "do not match"),
    "groups do not divide": (forward((5, 3, 4, 5), (2, 6, 3, 3, 3)), "5 images.*2 groups"),
    "no groups": (forward(weight=(0, 6, 3, 3, 3)), "0 groups"),
    "bias size": (forward(bias=5), r"got shape \(5\) for weights"),
    "bias dimensions": (forward(bias=(1, 6)), r"bias must have.*got shape \(1, 6\)"),
    "bias of groups": (forward(weight=(2, 6, 3, 3, 3), bias=(6,)), "one value per output channel"),
    "bias of other groups": (forward(weight=(2, 6, 3, 3, 3), bias=(1, 6)), "bias must have"),
    "bias transposed": (forward(weight=(2, 6, 3, 3, 3), bias=(6, 2)), "bias must have"),
    "gradients' dimensions": (OF_INPUT((6, 4, 5), WEIGHT, rest=(4, 5, 1)), "W.* gradients, got"),
    "gradients' dtype": (
        OF_INPUT(IMAGES, WEIGHT, rest=(4, 5, 1), kind=torch.half),
        "gradients must be float32",
    ),
    "gradients' channels": (OF_INPUT((2, 3, 4, 5), WEIGHT, rest=(4, 5, 1)), "do not match"),
    "gradients' height": (OF_INPUT(IMAGES, WEIGHT, rest=(9, 10, 2)), "9 x 10 pixels at stride 2"),
    "gradients' width": (OF_INPUT(IMAGES, WEIGHT, rest=(8, 11, 2)), "8 x 11 pixels at stride 2"),
    "input of no pixels": (OF_INPUT((2, 6, 1, 1), WEIGHT, rest=(0, 1, 2)), "0 x 1 pixels"),
    "input of fewer": (OF_INPUT((2, 6, 1, 1), WEIGHT, rest=(1, -1, 2)), "1 x -1 pixels"),
    "images' dimensions": (OF_WEIGHT((3, 4, 5), IMAGES, rest=(1, None)), "images, got shape"),
    "dy's dimensions": (OF_WEIGHT(IMAGES, (4, 5), rest=(1, None)), "gradients, got shape"),
    "dy's height": (OF_WEIGHT(IMAGES, (2, 3, 3, 5), rest=(1, None)), "4 x 5 pixels at stride 1"),
    "dy's number": (OF_WEIGHT(IMAGES, (3, 3, 4, 5), rest=(1, None)), "must agree in number"),
    "dy's dtype": (
        OF_WEIGHT(IMAGES, (2, 3, 4, 5), rest=(1, None), kind=torch.double),
        "agree in number, dtype",
    ),
    "groups of images": (OF_WEIGHT(IMAGES, (2, 3, 4, 5), rest=(1, 3)), "2 images.*3 groups"),
    "no groups of images": (OF_WEIGHT(IMAGES, (2, 3, 4, 5), rest=(1, 0)), "0 groups"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, message = ERRORS[name]
    with pytest.raises(RuntimeError, match=message):
        call()
