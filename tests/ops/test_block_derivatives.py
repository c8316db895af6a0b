"""The ops of a transformer block in every mode of differentiation: reverse, forward, func, vmap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._pytree import tree_map

from fastmeta.ops import _linear_loss
from tests.ops.block_cases import CASES, Case
from tests.ops.func_transforms import TRANSFORMS, batch_of, element, gradient, waves


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of rows, the last one incomplete."""
    monkeypatch.setattr(_linear_loss, "_CHUNK", 15)
    monkeypatch.setattr(_linear_loss, "_MIN_ROWS", 2)


def tracked(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def test_gradcheck(case: Case) -> None:
    leaves, (function, _) = tracked(case.tensors(torch.float64)), case.functions()
    assert gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, leaves, check_fwd_over_rev=True, fast_mode=True)


def test_gradients_of_some(case: Case) -> None:
    tensors, functions = case.tensors(torch.float64), case.functions()
    for moving in range(len(tensors)):
        results = []
        for function in functions:
            leaves = [t.detach().requires_grad_(i == moving) for i, t in enumerate(tensors)]
            (grad,) = torch.autograd.grad(
                waves(function)(*leaves), leaves[moving], create_graph=True
            )
            results.append([grad, *torch.autograd.grad(grad.sin().sum(), leaves[moving])])
        torch.testing.assert_close(*results)


def test_third_derivatives(case: Case) -> None:
    tensors = case.tensors(torch.float64)
    results = []
    for function in case.functions():
        leaves = tracked(tensors)
        value = waves(function)(*leaves)
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(g.sin().sum() for g in grads)
        results.append([value, *grads])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform: str, case: Case) -> None:
    tensors, functions = case.tensors(torch.float64), case.functions()
    torch.testing.assert_close(*(TRANSFORMS[transform](waves(f))(*tensors) for f in functions))


def test_forward_mode_over_backward(case: Case) -> None:
    tensors, functions = case.tensors(torch.float64), case.functions()
    moves = [torch.randn_like(t) for t in tensors]
    for moving in [(i,) for i in range(len(tensors))] + [tuple(range(len(tensors)))]:
        results = []
        for function in functions:
            leaves = tracked(tensors)
            with forward_ad.dual_level():
                duals = [
                    forward_ad.make_dual(t, m) if i in moving else t
                    for i, (t, m) in enumerate(zip(leaves, moves, strict=True))
                ]
                grads = torch.autograd.grad(waves(function)(*duals), leaves)
                results.append([forward_ad.unpack_dual(g).tangent for g in grads])
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("jacobian", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobians(jacobian, case: Case) -> None:
    """Under the vmap over all rows or columns, only some of the tensors are batched."""
    tensors, functions = case.tensors(torch.float64), case.functions()
    every = tuple(range(len(tensors)))
    torch.testing.assert_close(*(jacobian(f, every)(*tensors) for f in functions))
    hessians = [jacobian(torch.func.jacrev(waves(f), every), every) for f in functions]
    torch.testing.assert_close(*(hessian(*tensors) for hessian in hessians))


@pytest.mark.parametrize("transform", ["value", *TRANSFORMS])
def test_vmap(transform: str, case: Case) -> None:
    function = waves(case.functions()[0])
    run = function if transform == "value" else TRANSFORMS[transform](function)
    tensors = batch_of([case.tensors(torch.float64) for _ in range(3)], case.dims)
    found = torch.vmap(run, case.dims)(*tensors)
    for i in range(3):
        expected = run(*element(tensors, case.dims, i))
        torch.testing.assert_close(tree_map(lambda t, i=i: t[i], found), expected)


@pytest.mark.parametrize("name", ["layer_norm", "silu", "cross_entropy", "linear_cross_entropy"])
def test_compiled_with_fullgraph(name: str) -> None:
    case = CASES[name]
    tensors, functions = case.tensors(torch.float64), case.functions()
    function, expected = map(waves, functions)
    leaves = tracked(tensors)
    torch._dynamo.reset()
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(found, expected(*leaves))
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected(*leaves), leaves)
    )
    torch._dynamo.reset()
    compiled = torch.compile(gradient(function), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), gradient(expected)(*tensors))
