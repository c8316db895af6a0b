"""Attention in every mode of differentiation: reverse, forward, func, vmap, compile."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._pytree import tree_map

from fastmeta import ops, reference
from tests.ops.attention_cases import Config
from tests.ops.func_transforms import TRANSFORMS, batch_of, element, gradient, waves

CONFIGS = {
    "plain": Config(3, 4, width=4, value_width=4),
    "causal, grouped": Config(4, 5, heads=4, width=3, value_width=2, causal=True),
    "window": Config(5, 5, width=3, value_width=3, window=2),
    "mask": Config(4, 3, width=2, value_width=3, mask="keep"),
    "bias": Config(3, 4, width=2, value_width=2, mask="add"),
}


@pytest.fixture(params=CONFIGS)
def case(request: pytest.FixtureRequest):
    """Tensors, and the op and its reference as functions of them."""
    config = CONFIGS[request.param]
    mask = config.make_mask(torch.float64)
    both = [partial(f, mask=mask, **config.options) for f in (ops.attention, reference.attention)]
    return config.tensors(torch.float64), both


def tracked(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def test_gradcheck(case) -> None:
    tensors, (attention, _) = case
    leaves = tracked(tensors)
    assert gradcheck(attention, leaves, check_forward_ad=True)
    assert gradgradcheck(attention, leaves, check_fwd_over_rev=True)


@pytest.mark.parametrize("moving", [(0,), (1,), (2,)])
def test_gradients_of_some(moving: tuple[int, ...], case) -> None:
    tensors, functions = case
    results = []
    for function in functions:
        leaves = [t.detach().requires_grad_(i in moving) for i, t in enumerate(tensors)]
        own = [leaves[i] for i in moving]
        grads = torch.autograd.grad(waves(function)(*leaves), own, create_graph=True)
        results.append([*grads, *torch.autograd.grad(sum(g.sin().sum() for g in grads), own)])
    torch.testing.assert_close(*results)


def test_third_derivatives(case) -> None:
    tensors, functions = case
    results = []
    for function in functions:
        leaves = tracked(tensors)
        value = waves(function)(*leaves)
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(g.sin().sum() for g in grads)
        results.append([value, *grads])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform: str, case) -> None:
    tensors, functions = case
    torch.testing.assert_close(*(TRANSFORMS[transform](waves(f))(*tensors) for f in functions))


@pytest.mark.parametrize("moving", [(0,), (1,), (2,), (0, 1, 2)])
def test_forward_mode_over_backward(moving: tuple[int, ...], case) -> None:
    tensors, functions = case
    moves = [torch.randn_like(t) for t in tensors]
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
def test_jacobians(jacobian, case) -> None:
    """Under the vmap over all rows or columns, only some of the tensors are batched."""
    tensors, functions = case
    torch.testing.assert_close(*(jacobian(f, (0, 1, 2))(*tensors) for f in functions))
    hessians = [jacobian(torch.func.jacrev(waves(f), (0, 1, 2)), (0, 1, 2)) for f in functions]
    torch.testing.assert_close(*(hessian(*tensors) for hessian in hessians))


@pytest.mark.parametrize("dims", [(0, 0, 0), (1, 0, None), (None, 2, 3)])
@pytest.mark.parametrize("transform", ["value", *TRANSFORMS])
def test_vmap(transform: str, dims: tuple[int | None, ...]) -> None:
    config = CONFIGS["causal, grouped"]
    function = waves(partial(ops.attention, **config.options))
    run = function if transform == "value" else TRANSFORMS[transform](function)
    tensors = batch_of([config.tensors(torch.float64) for _ in range(3)], dims)
    found = torch.vmap(run, dims)(*tensors)
    for i in range(3):
        expected = run(*element(tensors, dims, i))
        torch.testing.assert_close(tree_map(lambda t, i=i: t[i], found), expected)


@pytest.mark.parametrize("shape", [(3, 4), (3, 1, 1, 4), (3, 2, 1, 3, 4), (3, 2, 3, 4)])
def test_vmap_over_masks(shape: tuple[int, ...]) -> None:
    config = CONFIGS["plain"]
    tensors, masks = config.tensors(torch.float64), torch.rand(shape) > 0.3
    for dims in ((None, None, None, 0), (0, 0, 0, 0), (0, 0, 0, None)):
        batch = [
            t if d is None else torch.stack([t] * 3) for t, d in zip(tensors, dims, strict=False)
        ]
        mask = masks if dims[3] == 0 else masks[0]
        found = torch.vmap(ops.attention, dims)(*batch, mask)
        for i in range(3):
            own = mask if dims[3] is None else mask[i]
            torch.testing.assert_close(found[i], reference.attention(*tensors, own))


def test_compiled_with_fullgraph(case) -> None:
    tensors, functions = case
    attention, expected = map(waves, functions)
    leaves = tracked(tensors)
    torch._dynamo.reset()
    found = torch.compile(attention, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(found, expected(*leaves))
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected(*leaves), leaves)
    )
    torch._dynamo.reset()
    compiled = torch.compile(gradient(attention), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), gradient(expected)(*tensors))


def test_a_moving_mask_is_refused() -> None:
    q, k, v = CONFIGS["plain"].tensors(torch.float64)
    mask = torch.zeros(3, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="mask has no gradient"):
        torch.func.jvp(lambda m: ops.attention(q, k, v, m), (mask,), (mask + 1,))
    with pytest.raises(RuntimeError, match="mask has no gradient"):
        torch.func.grad(lambda m: ops.attention(q, k, v, m).sum())(mask)
