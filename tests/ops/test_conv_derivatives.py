"""3x3 convolutions in every mode of differentiation: reverse, forward, func, compile."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from tests.ops.conv_cases import WINOGRAD, conv, conv_inputs, reference_conv
from tests.ops.func_transforms import TRANSFORMS, gradient, waves

STRIDES = pytest.mark.parametrize("stride", [1, 2])
GROUPS = pytest.mark.parametrize("groups", [None, 2])
SHAPE = (3, 2, 3, 4, 5)


def tracked(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


@STRIDES
@GROUPS
def test_gradcheck(groups: int | None, stride: int) -> None:
    for shape in (SHAPE, (1, 1, 1, 1, 1), (2, 3, 2, 2, 3)):
        leaves = tracked(conv_inputs(shape, groups=groups))
        for own in (leaves, leaves[:2]):
            function = partial(conv, stride=stride)
            assert gradcheck(function, own, check_forward_ad=True)
            assert gradgradcheck(function, own, check_fwd_over_rev=True)


@GROUPS
def test_gradcheck_of_winograds_method(groups: int | None) -> None:
    leaves = tracked(conv_inputs(WINOGRAD[0], groups=groups))
    assert gradcheck(conv, leaves, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(conv, leaves, check_fwd_over_rev=True, fast_mode=True)


@STRIDES
@GROUPS
def test_third_derivatives(groups: int | None, stride: int) -> None:
    tensors = conv_inputs(SHAPE, groups=groups)
    results = []
    for function in (conv, reference_conv):
        leaves = tracked(tensors)
        value = waves(partial(function, stride=stride))(*leaves)
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(g.sin().sum() for g in grads)
        results.append([value, *grads])
    torch.testing.assert_close(*results)


@pytest.fixture(params=[1, 2], ids=["stride 1", "stride 2"])
def pair(request: pytest.FixtureRequest):
    """The op and its reference as scalar functions."""
    return [waves(partial(f, stride=request.param)) for f in (conv, reference_conv)]


@GROUPS
@pytest.mark.parametrize("count", [2, 3], ids=["no bias", "bias"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform: str, count: int, groups: int | None, pair) -> None:
    tensors = conv_inputs(SHAPE, groups=groups)[:count]
    torch.testing.assert_close(*(TRANSFORMS[transform](f)(*tensors) for f in pair))


@STRIDES
@GROUPS
@pytest.mark.parametrize("jacobian", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobians(jacobian, groups: int | None, stride: int) -> None:
    """Under the vmap over all rows or columns, only one factor of each product is batched."""
    tensors = conv_inputs((2, 2, 3, 3, 4), groups=groups)
    functions = [partial(f, stride=stride) for f in (conv, reference_conv)]
    torch.testing.assert_close(*(jacobian(f, (0, 1, 2))(*tensors) for f in functions))
    hessians = [jacobian(torch.func.jacrev(waves(f), (0, 1, 2)), (0, 1, 2)) for f in functions]
    torch.testing.assert_close(*(hessian(*tensors) for hessian in hessians))


@pytest.mark.parametrize("moving", [(0,), (1,), (2,), (0, 1, 2)])
def test_forward_mode_over_backward(moving: tuple[int, ...], pair) -> None:
    tensors = conv_inputs(SHAPE)
    moves = [torch.randn_like(t) for t in tensors]
    results = []
    for function in pair:
        leaves = tracked(tensors)
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(t, m) if i in moving else t
                for i, (t, m) in enumerate(zip(leaves, moves, strict=True))
            ]
            grads = torch.autograd.grad(function(*duals), leaves)
            results.append([forward_ad.unpack_dual(g).tangent for g in grads])
    torch.testing.assert_close(*results)


@GROUPS
@pytest.mark.parametrize("count", [2, 3], ids=["no bias", "bias"])
def test_compiled_with_fullgraph(count: int, groups: int | None, pair) -> None:
    leaves = tracked(conv_inputs(SHAPE, groups=groups)[:count])
    torch._dynamo.reset()
    found = torch.compile(pair[0], fullgraph=True, backend="aot_eager")(*leaves)
    expected = pair[1](*leaves)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves)
    )
    torch._dynamo.reset()
    compiled = torch.compile(gradient(pair[0]), fullgraph=True, backend="aot_eager")
    tensors = conv_inputs(SHAPE, groups=groups)[:count]
    torch.testing.assert_close(compiled(*tensors), gradient(pair[1])(*tensors))


def test_compiled_with_one_tensor_twice() -> None:
    """The images are the weights; ``torch.compile`` needs distinct arguments of a Function."""
    x = torch.randn(3, 3, 3, 3).double().requires_grad_()
    torch._dynamo.reset()
    found = torch.compile(lambda t: conv(t, t), fullgraph=True, backend="aot_eager")(x)
    expected = reference_conv(x, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x) for y in (found, expected)))
