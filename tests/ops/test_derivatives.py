"""Derivatives of every op: autograd twice, torch.func, forward mode, torch.compile, opcheck."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from tests.helpers.op_cases import CASES, Case, listed

TASKS, COLUMNS = 3, 7


def inputs(case: Case) -> list[Tensor]:
    return [t.requires_grad_() for t in case.inputs(torch.float64, TASKS, COLUMNS)]


def total(function, weights: list[Tensor]):
    """A scalar that weights every output differently."""
    return lambda *t: sum(
        (o.to(w) * w).sum() for o, w in zip(listed(function(*t)), weights, strict=True)
    )


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def weights(case: Case) -> list[Tensor]:
    outputs = listed(case.reference(*case.inputs(torch.float64, TASKS, COLUMNS)))
    return [torch.randn_like(o) for o in outputs]


def test_first_and_second_derivatives(case: Case) -> None:
    tensors = inputs(case)
    assert gradcheck(case.op, tensors, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(case.op, tensors, fast_mode=True)


def test_gradients_equal_those_of_the_reference(case: Case, weights: list[Tensor]) -> None:
    tensors = inputs(case)
    found = torch.autograd.grad(total(case.op, weights)(*tensors), tensors, allow_unused=True)
    expected = torch.autograd.grad(
        total(case.reference, weights)(*tensors), tensors, allow_unused=True
    )
    for f, e, t in zip(found, expected, tensors, strict=True):
        zero = torch.zeros_like(t)
        torch.testing.assert_close(zero if f is None else f, zero if e is None else e)


def test_func_grad(case: Case, weights: list[Tensor]) -> None:
    tensors = [t.detach() for t in inputs(case)]
    numbers = tuple(range(len(tensors)))
    found = torch.func.grad(total(case.op, weights), numbers)(*tensors)
    expected = torch.func.grad(total(case.reference, weights), numbers)(*tensors)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e)


def test_func_jvp_and_forward_mode(case: Case) -> None:
    tensors = [t.detach() for t in inputs(case)]
    tangents = [torch.randn_like(t) for t in tensors]
    _, found = torch.func.jvp(case.op, tuple(tensors), tuple(tangents))
    _, expected = torch.func.jvp(case.reference, tuple(tensors), tuple(tangents))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(tensors, tangents, strict=True)]
        dual = [forward_ad.unpack_dual(o).tangent for o in listed(case.op(*duals))]
    for f, d, e in zip(listed(found), dual, listed(expected), strict=True):
        torch.testing.assert_close(f, e)
        torch.testing.assert_close(d, e)


def test_hessian_vector_product_of_func(case: Case, weights: list[Tensor]) -> None:
    tensors = tuple(t.detach() for t in inputs(case))
    tangents = tuple(torch.randn_like(t) for t in tensors)
    numbers = tuple(range(len(tensors)))
    results = [
        torch.func.jvp(torch.func.grad(total(f, weights), numbers), tensors, tangents)[1]
        for f in (case.op, case.reference)
    ]
    for f, e in zip(*results, strict=True):
        torch.testing.assert_close(f, e)


def test_vmap_and_its_gradient(case: Case, weights: list[Tensor]) -> None:
    batches = [case.inputs(torch.float64, TASKS, COLUMNS) for _ in range(4)]
    stacked = [torch.stack(parts) for parts in zip(*batches, strict=True)]
    found = listed(torch.vmap(case.op)(*stacked))
    for k, batch in enumerate(batches):
        for f, e in zip(found, listed(case.reference(*batch)), strict=True):
            torch.testing.assert_close(f[k], e)
    gradient = torch.func.grad(total(case.op, weights))
    single = torch.func.grad(total(case.reference, weights))
    per_sample = torch.vmap(gradient)(*stacked)
    for k, batch in enumerate(batches):
        torch.testing.assert_close(per_sample[k], single(*batch))


def test_vmap_over_one_argument(case: Case) -> None:
    first, *others = case.inputs(torch.float64, TASKS, COLUMNS)
    stacked = torch.stack([first, 2 * first])
    found = listed(torch.vmap(case.op, in_dims=(0, *[None] * len(others)))(stacked, *others))
    for f, e in zip(found, listed(case.reference(2 * first, *others)), strict=True):
        torch.testing.assert_close(f[1], e)


def test_compiled_with_fullgraph(case: Case, weights: list[Tensor]) -> None:
    tensors = inputs(case)
    torch._dynamo.reset()
    compiled = torch.compile(total(case.op, weights), fullgraph=True, backend="aot_eager")
    found, expected = compiled(*tensors), total(case.reference, weights)(*tensors)
    torch.testing.assert_close(found, expected)
    pairs = [
        torch.autograd.grad(value, tensors, allow_unused=True, materialize_grads=True)
        for value in (found, expected)
    ]
    for f, e in zip(*pairs, strict=True):
        torch.testing.assert_close(f, e)


def test_compiled_gradient_transform(case: Case, weights: list[Tensor]) -> None:
    tensors = [t.detach() for t in inputs(case)]
    torch._dynamo.reset()
    gradient = torch.func.grad(total(case.op, weights))
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(*tensors), torch.func.grad(total(case.reference, weights))(*tensors)
    )
