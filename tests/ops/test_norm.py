"""The BatchNorm-ReLU-pool block against torch, up to third derivatives."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from fastmeta import ops, reference
from tests.helpers.norm_cases import norm_inputs

EPS = 1e-3
# (N, C, H, W): not multiples of vector widths, one value per channel, more pixels than a block.
SIZES = [
    *product((1, 3), (1, 2), (1, 3), (1, 33)),
    *((2, 3, 31, 33), (31, 2, 2, 2), (33, 1, 7, 7), (5, 3, 14, 14), (1, 2, 84, 85), (3, 31, 3, 2)),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}
POOL = pytest.mark.parametrize("pool", [False, True], ids=["plain", "pool"])
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def block(x: Tensor, weight: Tensor, bias: Tensor, *, pool: bool = False) -> Tensor:
    return ops.batch_norm_relu(x, weight, bias, EPS, pool=pool)[0]


def torch_block(x: Tensor, weight: Tensor, bias: Tensor, *, pool: bool = False) -> Tensor:
    z = torch.relu(F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS))
    return F.max_pool2d(z, 2) if pool else z


def reference_block(x: Tensor, weight: Tensor, bias: Tensor, *, pool: bool = False) -> Tensor:
    return reference.batch_norm_relu(x, weight, bias, EPS, pool)[0]


def sizes(pool: bool) -> list[tuple[int, ...]]:
    """The sizes that torch can normalize, and pool."""
    return [s for s in SIZES if s[0] * s[2] * s[3] > 1 and (not pool or (s[2] >= 2 and s[3] >= 2))]


def inputs(
    shape: tuple[int, ...] = (3, 2, 4, 5), dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    return norm_inputs(shape, dtype, EPS)


def tracked(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    bound = TOLERANCE[dtype] * (1 + expected.abs().max().item())
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= bound


@POOL
@DTYPES
def test_values_and_statistics(dtype: torch.dtype, pool: bool) -> None:
    for shape in sizes(pool):
        tensors = inputs(shape, dtype)
        z, mean, var = ops.batch_norm_relu(*tensors, EPS, pool=pool)
        x, weight, bias = (t.double() for t in tensors)
        close(z, torch_block(x, weight, bias, pool=pool), dtype)
        close(mean, x.mean((0, 2, 3)), dtype)
        close(var, x.var((0, 2, 3), unbiased=False), dtype)


@POOL
@DTYPES
def test_first_and_second_gradients(dtype: torch.dtype, pool: bool) -> None:
    for shape in sizes(pool):
        if shape[0] * shape[2] * shape[3] < 6 and dtype == torch.float32:
            continue  # second derivatives of a few values are differences of large numbers
        narrow = inputs(shape, dtype)
        dz = torch.randn_like(torch_block(*narrow, pool=pool)).requires_grad_()
        moves = [torch.randn_like(t) for t in narrow]
        results = []
        for function, own in ((block, narrow), (torch_block, [t.double() for t in narrow])):
            leaves = tracked(own)
            up = dz.detach().to(own[0].dtype).requires_grad_()
            first = torch.autograd.grad(function(*leaves, pool=pool), leaves, up, create_graph=True)
            value = sum((g * m).sum() for g, m in zip(first, moves, strict=True))
            second = torch.autograd.grad(value, [up, *leaves[:2]])
            results.append([*first, *second])
        for found, expected in zip(*results, strict=True):
            close(found, expected.detach(), dtype)


@POOL
def test_gradcheck(pool: bool) -> None:
    def function(*tensors: Tensor) -> Tensor:
        return block(*tensors, pool=pool)

    for shape in ((3, 2, 4, 5), (2, 1, 3, 3), (1, 3, 2, 2)):
        leaves = tracked(inputs(shape))
        assert gradcheck(function, leaves, check_forward_ad=True)
        assert gradgradcheck(function, leaves, check_fwd_over_rev=True)


@POOL
def test_third_derivatives(pool: bool) -> None:
    tensors = inputs()
    moves = [torch.randn_like(t) for t in tensors]
    weight = torch.randn_like(torch_block(*tensors, pool=pool))
    results = []
    for function in (block, reference_block):  # torch's batch_norm has wrong third derivatives
        leaves = tracked(tensors)
        value = (function(*leaves, pool=pool).square() * weight).sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum((g * m).sum() for g, m in zip(grads, moves, strict=True))
        results.append(value.detach())
    torch.testing.assert_close(*results)


def scalar(function, weight: Tensor, pool: bool):
    return lambda *t: (function(*t, pool=pool).square() * weight).sum()


@pytest.fixture(params=[False, True], ids=["plain", "pool"])
def pair(request: pytest.FixtureRequest):
    """The op and its reference as scalar functions of three tensors.

    The reference is written in plain torch, since torch's batch_norm is wrong in reverse over
    forward mode.
    """
    weight = torch.randn_like(torch_block(*inputs(), pool=request.param))
    return [scalar(function, weight, request.param) for function in (block, reference_block)]


NUMBERS = (0, 1, 2)


def test_func_grad_and_hessian_products(pair) -> None:
    tensors = tuple(inputs())
    moves = tuple(torch.randn_like(t) for t in tensors)

    def nested(function):  # reverse over reverse, as in an exact meta-gradient
        def inner(*t: Tensor) -> Tensor:
            grads = torch.func.grad(function, NUMBERS)(*t)
            return sum((g * m).sum() for g, m in zip(grads, moves, strict=True))

        return torch.func.grad(inner, NUMBERS)(*tensors)

    for run in (
        lambda f: torch.func.grad(f, NUMBERS)(*tensors),
        lambda f: torch.func.jvp(f, tensors, moves),
        lambda f: torch.func.jvp(torch.func.grad(f, NUMBERS), tensors, moves)[1],
        lambda f: torch.func.grad(lambda *t: torch.func.jvp(f, t, moves)[1], NUMBERS)(*tensors),
        nested,
    ):
        torch.testing.assert_close(*(run(f) for f in pair))


def test_forward_mode_over_backward(pair) -> None:
    tensors, moves = inputs(), [torch.randn_like(t) for t in inputs()]
    results = []
    for function in pair:
        leaves = tracked(tensors)
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, m) for t, m in zip(leaves, moves, strict=True)]
            grads = torch.autograd.grad(function(*duals), leaves)
            results.append([forward_ad.unpack_dual(g).tangent for g in grads])
    torch.testing.assert_close(*results)


def test_vmap_and_its_gradients(pair) -> None:
    batches = [inputs() for _ in range(3)]
    stacked = [torch.stack(parts) for parts in zip(*batches, strict=True)]
    gradients = torch.vmap(torch.func.grad(pair[0], NUMBERS))(*stacked)
    for k, batch in enumerate(batches):
        expected = torch.func.grad(pair[1], NUMBERS)(*batch)
        torch.testing.assert_close(tuple(g[k] for g in gradients), expected)
    shared = torch.vmap(pair[0], in_dims=(0, None, None))(stacked[0], *batches[0][1:])
    torch.testing.assert_close(shared[1], pair[1](batches[1][0], *batches[0][1:]))


def test_compiled_with_fullgraph(pair) -> None:
    leaves = tracked(inputs())
    torch._dynamo.reset()
    found = torch.compile(pair[0], fullgraph=True, backend="aot_eager")(*leaves)
    expected = pair[1](*leaves)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves)
    )
    torch._dynamo.reset()
    gradient = torch.compile(torch.func.grad(pair[0], NUMBERS), fullgraph=True, backend="aot_eager")
    tensors = inputs()
    torch.testing.assert_close(gradient(*tensors), torch.func.grad(pair[1], NUMBERS)(*tensors))


@POOL
@DTYPES
def test_memory_formats_give_the_same_result(dtype: torch.dtype, pool: bool) -> None:
    tensors = inputs((3, 5, 6, 7), dtype)
    wide = torch.full((3, 5, 6, 15), float("nan"), dtype=dtype)
    wide[..., 1::2] = tensors[0]
    layouts = (tensors[0].to(memory_format=torch.channels_last), wide[..., 1::2])
    results = []
    for x in (tensors[0], *layouts):
        leaves = [x.detach().requires_grad_(), *tracked(tensors[1:])]
        z = block(*leaves, pool=pool)
        grads = torch.autograd.grad(z.sum(), leaves, create_graph=True)  # dz without strides
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves[:2])
        results.append([z, *grads, *second])
    for other in results[1:]:
        assert all(torch.equal(f, e) for f, e in zip(other, results[0], strict=True))


@POOL
@DTYPES
def test_bitwise_equal_for_any_number_of_threads(dtype: torch.dtype, pool: bool) -> None:
    tensors = inputs((7, 13, 21, 22), dtype)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        leaves = tracked(tensors)
        z = block(*leaves, pool=pool)
        grads = torch.autograd.grad(z.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
        results.append([z, *grads, *second])
    for other in results[1:]:
        assert all(torch.equal(f, e) for f, e in zip(other, results[0], strict=True))


@POOL
@DTYPES
def test_constant_channels(dtype: torch.dtype, pool: bool) -> None:
    x, weight, bias = inputs((5, 3, 4, 4), dtype)
    x[:, 1] = 3.7  # equal values: zero variance, only ties
    bias[1] = 0.5
    leaves = tracked([x, weight, bias])
    z, _, var = ops.batch_norm_relu(*leaves, EPS, pool=pool)
    assert var[1] == 0
    assert (z[:, 1] == 0.5).all()
    found = torch.autograd.grad(z.square().sum(), leaves)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    expected = torch.autograd.grad(torch_block(*exact, pool=pool).square().sum(), exact)
    for f, e in zip(found, expected, strict=True):
        close(f, e, dtype)


def test_far_from_zero() -> None:
    """A mean far above the deviation loses only the digits that the input itself has lost."""
    x, weight, bias = inputs((9, 2, 31, 31), torch.float32)
    x += 1000
    expected = torch_block(*(t.double() for t in (x, weight, bias)))
    assert (block(x, weight, bias) - expected).abs().max() < 3e-4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@POOL
def test_non_finite_values_propagate(value: float, pool: bool) -> None:
    x, weight, bias = inputs((3, 2, 5, 5), torch.float32)
    x[1, 0, 2, 2] = value
    leaves = tracked([x, weight, bias])
    z = block(*leaves, pool=pool)
    grads = torch.autograd.grad(z.sum(), leaves)
    assert z[:, 0].isnan().all()
    assert z[:, 1].isfinite().all()
    assert grads[0][:, 0].isnan().all()
    assert grads[0][:, 1].isfinite().all()


def test_statistics_carry_no_gradient() -> None:
    z, mean, var = ops.batch_norm_relu(*tracked(inputs()))
    assert z.requires_grad
    assert not mean.requires_grad
    assert not var.requires_grad


ERRORS = {
    "dimensions": (lambda: (torch.randn(3, 4), *torch.rand(2, 4)), "non-empty"),
    "empty": (lambda: (torch.randn(0, 4, 2, 2), *torch.rand(2, 4)), "non-empty"),
    "half": (lambda: (torch.randn(2, 4, 2, 2).half(), *torch.rand(2, 4).half()), "float32 or"),
    "channels": (lambda: (torch.randn(2, 4, 2, 2), *torch.rand(2, 3)), "one value per channel"),
    "dtypes": (lambda: (torch.randn(2, 4, 2, 2), *torch.rand(2, 4).double()), "dtype and device"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    make, message = ERRORS[name]
    with pytest.raises(RuntimeError, match=message):
        ops.batch_norm_relu(*make())


def test_too_small_to_pool() -> None:
    with pytest.raises(RuntimeError, match="planes of 2x2 or more"):
        ops.batch_norm_relu(torch.randn(2, 4, 1, 5), *torch.rand(2, 4), pool=True)
