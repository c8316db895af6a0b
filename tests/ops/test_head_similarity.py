"""The head similarity against autograd of autograd."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmeta import _testing, ops, reference
from fastmeta.ops import head_similarity as module_function
from fastmeta.reference.mlp import LOSSES
from tests.helpers.head_cases import (
    MIXTURE,
    SIZES,
    TOLERANCE,
    WEIGHTS,
    by_autograd,
    check,
    compare,
    problem,
)

module = sys.modules[module_function.__module__]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_matches_autograd(loss: str, dtype: torch.dtype, weights: str, bias: bool) -> None:
    for size in SIZES:
        compare(problem(size, loss, dtype=dtype, bias=bias), loss, **WEIGHTS[weights])


@pytest.mark.parametrize("loss", LOSSES)
def test_the_reference_matches_autograd(loss: str) -> None:
    for size in SIZES:
        args = problem(size, loss)
        found = reference.head_similarity(*args, loss, *MIXTURE.values())
        check(ops.HeadSimilarity(*found), args, loss, **MIXTURE)


@pytest.mark.parametrize("loss", LOSSES)
def test_linear_in_the_query_gradient(loss: str) -> None:
    """With the inner product alone: the product of the head's columns of the Hessian with it."""
    args = problem((6, 5, 32), loss)
    once = ops.head_similarity(*args, loss=loss)
    twice = ops.head_similarity(*args[:4], 2 * args[4], 2 * args[5], loss=loss)
    assert torch.equal(twice.d_features, 2 * once.d_features)
    assert torch.equal(twice.d_weight, 2 * once.d_weight)
    assert torch.equal(twice.grad_weight, once.grad_weight)


@pytest.mark.parametrize("tasks", [1, 2, 33])
def test_any_number_of_tasks(tasks: int) -> None:
    compare(problem((5, 4, 24), tasks=tasks), "cross_entropy", **MIXTURE)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_bitwise_equal_for_any_number_of_threads_and_tasks(loss: str, dtype: torch.dtype) -> None:
    args = problem((13, 7, 801), loss, 13, dtype)
    torch.set_num_threads(1)
    expected = ops.head_similarity(*args, loss=loss, **MIXTURE)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        found = ops.head_similarity(*args, loss=loss, **MIXTURE)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    alone = ops.head_similarity(*(t[4:5] for t in args), loss=loss, **MIXTURE)
    assert all(torch.equal(a[0], b[4]) for a, b in zip(alone, expected, strict=True))


_RUN = """
import sys, torch
from fastmeta import build_info, ops
assert build_info().cpu_isa == sys.argv[1]
cases = torch.load(sys.argv[2])
torch.save([list(ops.head_similarity(*args, **how)) for args, how in cases], sys.argv[3])
"""


def test_other_instruction_sets(tmp_path: Path) -> None:
    cases: list[tuple[list[Any], dict[str, Any]]] = [
        (problem(size, loss, dtype=dtype), {"loss": loss, **MIXTURE})
        for size in SIZES
        for loss in LOSSES
        for dtype in TOLERANCE
    ]
    torch.save(cases, tmp_path / "cases")
    for isa in _testing.instruction_sets()[:-1]:
        command = [sys.executable, "-c", _RUN, isa, tmp_path / "cases", tmp_path / "found"]
        subprocess.run(command, check=True, env={**os.environ, "FASTMETA_CPU_ISA": isa})
        for found, (args, how) in zip(torch.load(tmp_path / "found"), cases, strict=True):
            check(ops.HeadSimilarity(*found), args, **how)


def _spread(t: Tensor) -> Tensor:
    large = torch.zeros(*t.shape[:-1], 2 * t.shape[-1], dtype=t.dtype)
    large[..., ::2] = t
    return large[..., ::2]


@pytest.mark.parametrize("layout", [_spread, lambda t: t.mT.contiguous().mT, lambda t: t[:1]])
@pytest.mark.parametrize("loss", LOSSES)
def test_any_strides(loss: str, layout: Callable[[Tensor], Tensor]) -> None:
    args = problem((6, 3, 20), loss)
    changed = [layout(t).expand(t.shape) for t in args]
    found = ops.head_similarity(*changed, loss=loss, **MIXTURE)
    expected = ops.head_similarity(*(t.contiguous() for t in changed), loss=loss, **MIXTURE)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_ignored_targets() -> None:
    args = problem((7, 3, 20))
    args[2][:, :4] = -100
    args[2][1] = -100  # a mean over nothing: the loss is NaN, its gradient 0
    compare(args, "cross_entropy", **MIXTURE)
    found = ops.head_similarity(*args, loss="cross_entropy", **MIXTURE)
    for t in (found.grad_weight, found.grad_bias, found.d_features, found.d_weight, found.d_bias):
        assert not t[1].any()
    assert found.similarity[1, :2].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_no_examples(loss: str, dtype: torch.dtype) -> None:
    args = problem((0, 3, 20), loss, dtype=dtype)
    compare(args, loss, **MIXTURE)
    found = ops.head_similarity(*args, loss=loss, **MIXTURE)
    assert found.d_features.shape == (3, 0, 20)
    assert not found.d_weight.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_no_tasks(loss: str) -> None:
    found = ops.head_similarity(*problem((5, 3, 20), loss, tasks=0), loss=loss)
    shapes = [(0, 3, 20), (0, 3), (0, 3), (0, 5, 20), (0, 3, 20), (0, 3)]
    assert [t.shape for t in found] == shapes


def test_a_gradient_of_zero_has_no_cosine() -> None:
    args = problem((4, 3, 16), "mse")
    args[2] = args[1].clone()  # every error is 0
    found = ops.head_similarity(*args, loss="mse", cosine=0.5)
    expected = ops.head_similarity(*args, loss="mse", inner_product=1.5)
    assert found.d_weight.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1, 3, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_non_finite_values_stay_in_their_task(loss: str, place: int, value: float) -> None:
    args = problem((5, 3, 33), loss, dtype=torch.float32)
    args[place][1, 2, 1] = value
    found = ops.head_similarity(*args, loss=loss, **MIXTURE)
    expected = reference.head_similarity(*args, loss, *MIXTURE.values())
    assert not found.d_features[1].isfinite().all()
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f.isfinite(), e.isfinite())


def test_extreme_logits() -> None:
    args = problem((8, 5, 16))
    args[1] *= 300
    compare(args, "cross_entropy", **MIXTURE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_results_carry_no_graph(loss: str, bias: bool) -> None:
    args = problem((5, 3, 20), loss, bias=bias)
    before = [t if t is None else t.clone() for t in args]
    tracked = [t if t is None or t.dtype == torch.int64 else t.requires_grad_() for t in args]
    found = ops.head_similarity(*tracked, loss=loss)
    assert not any(t.requires_grad for t in found if t is not None)
    assert all(t is None or torch.equal(t, b) for t, b in zip(args, before, strict=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_vmap(loss: str, bias: bool) -> None:
    batches = [problem((5, 3, 20), loss, bias=bias) for _ in range(4)]
    for in_dims in ((0,) * 6, (1, 0, 0, None, 2, 0), (None, None, None, None, 0, None)):
        dims = in_dims if bias else (*in_dims[:5], None)
        stacked = [
            parts[0] if dim is None else torch.stack(parts, dim)
            for parts, dim in zip(zip(*batches, strict=True), dims, strict=True)
        ]

        def call(*args: Any) -> list[Tensor]:
            return [t for t in ops.head_similarity(*args, loss=loss, **MIXTURE) if t is not None]

        found = torch.vmap(call, in_dims=dims)(*stacked)
        for k in range(4):
            single = [
                t if dim is None else t.select(dim, k) for t, dim in zip(stacked, dims, strict=True)
            ]
            for f, e in zip(found, call(*single), strict=True):
                torch.testing.assert_close(f[k], e)


def test_derivatives_are_refused() -> None:
    args = problem((5, 3, 20))

    def total(features: Tensor) -> Tensor:
        return ops.head_similarity(features, *args[1:], loss="cross_entropy").d_weight.sum()

    for call in (
        lambda: torch.func.grad(total)(args[0]),
        lambda: torch.func.jvp(total, (args[0],), (args[0],)),
    ):
        with pytest.raises(RuntimeError, match="head_similarity: this op has no derivative"):
            call()


@pytest.mark.parametrize("bias", [True, False])
def test_compiled_with_fullgraph(bias: bool) -> None:
    args = problem((5, 3, 20), bias=bias)

    def call(*tensors: Any) -> list[Tensor]:
        found = ops.head_similarity(*tensors, loss="cross_entropy", **MIXTURE)
        return [2 * t for t in found if t is not None]

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for f, e in zip(compiled(*args), call(*args), strict=True):
        torch.testing.assert_close(f, e)


BAD: dict[str, tuple[int, Callable[[Tensor], Any], str]] = {
    "features of a task": (0, lambda x: x[0], "expected features (tasks, examples, width)"),
    "weight of a task": (3, lambda w: w[0], "a weight (tasks, classes, width)"),
    "no classes": (3, lambda w: w[:, :0], "at least one class"),
    "integers": (0, lambda x: x.long(), "dtype"),
    "other logits": (1, lambda z: z[:, 1:], "logits: expected (tasks, examples, classes)"),
    "other features": (3, lambda w: w[..., 1:], "weight: expected (tasks, classes, width)"),
    "fewer tasks": (4, lambda v: v[1:], "query_weight: expected (tasks, classes, width)"),
    "another dtype": (4, lambda v: v.float(), "query_weight: expected"),
    "a bias of features": (5, lambda v: v[:, 1:], "query_bias: expected (tasks, classes)"),
    "targets of another number": (2, lambda y: y[:, 1:], "targets: expected (tasks, examples)"),
    "targets that are numbers": (2, lambda y: y.double(), "int64 class numbers"),
    "a class too many": (2, lambda y: y + 3, "is not one of the 3 outputs, 0 to 2"),
    "a negative class": (2, lambda y: y - 3, "is not one of the 3 outputs"),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_tensors_are_refused(name: str) -> None:
    place, change, message = BAD[name]
    args = problem((5, 3, 20))
    args[place] = change(args[place])
    with pytest.raises(RuntimeError) as caught:
        ops.head_similarity(*args, loss="cross_entropy")
    assert str(caught.value).startswith("fastmeta: ")
    assert message in str(caught.value)


def test_targets_of_the_squared_error() -> None:
    args = problem((5, 3, 20), "mse")
    with pytest.raises(RuntimeError, match=r"targets: expected \(tasks, examples, classes\)"):
        ops.head_similarity(*args[:2], args[2][..., :1], *args[3:], loss="mse")


def test_unknown_loss() -> None:
    with pytest.raises(ValueError, match="unknown loss 'l1'; expected one of mse, cross_entropy"):
        ops.head_similarity(*problem((5, 3, 20)), loss="l1")


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_PRODUCTS_CPU", "MAX_PRODUCTS_CUDA"):
        monkeypatch.setattr(module, name, 10)
    monkeypatch.setattr(module.kernels, "head_similarity", None)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_large_heads_by_matrix_products(small_limit: None, loss: str, bias: bool) -> None:
    args = problem((5, 3, 20), loss, bias=bias)
    compare(args, loss, **MIXTURE)
    tracked = ops.head_similarity(args[0].requires_grad_(), *args[1:], loss=loss)
    assert not tracked.d_features.requires_grad


@pytest.mark.parametrize("name", [n for n, (k, _, _) in BAD.items() if k not in (0, 3)])
def test_invalid_tensors_of_large_heads(small_limit: None, name: str) -> None:
    place, change, _ = BAD[name]
    args = problem((5, 3, 20))
    args[place] = change(args[place])
    with pytest.raises(RuntimeError, match="fastmeta: head_similarity: "):
        ops.head_similarity(*args, loss="cross_entropy")


def test_an_invalid_class_gives_nan_in_the_reference() -> None:
    args = problem((5, 3, 20))
    args[2][1, 2] = 3
    found = reference.head_similarity(*args, "cross_entropy", *MIXTURE.values())
    for f in found:
        assert f is not None
        assert f.flatten(1).isnan().any(1).tolist() == [False, True, False]
    assert by_autograd([t[:1] for t in args], "cross_entropy").d_features.isfinite().all()
