"""The CUDA kernel of the head similarity against autograd: emulated on the CPU, and on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastmeta._testing import cuda
from torch import Tensor

from fastmeta import ops, reference
from fastmeta.backend import kernels
from fastmeta.ops import HeadSimilarity
from fastmeta.reference.mlp import LOSSES
from tests.cuda.emulation import array, name, run
from tests.cuda.gpu import needs_gpu, replayed, without_synchronization
from tests.helpers.head_cases import MIXTURE, SIZES, TOLERANCE, WEIGHTS, check, problem

SHARED_BYTES = 47 * 1024
DEFAULTS = {"inner_product": 1.0, "cosine": 0.0, "l2": 0.0}


def emulated(
    args: list[Any],
    loss: str,
    shared_bytes: int = SHARED_BYTES,
    blocks: int = 2**31,
    **weights: float,
) -> tuple[HeadSimilarity, tuple[int, int]]:
    """The results of several orders, which agree bit for bit, and the numbers of elements of a
    block's shared memory and scratch.
    """
    features, weight, dtype = args[0], args[3], args[0].dtype
    head, bias = tuple(weight.shape), [] if args[5] is None else [tuple(weight.shape[:2])] * 2
    memory, similarities = [], []

    def call(results: list[Any], seed: int) -> None:
        similarity = torch.full((len(weight), 3), 7.0, dtype=reference.accumulation_dtype(dtype))
        data = [array(t) for t in args if t is not None]
        lam = (DEFAULTS | weights).values()
        how = (list(LOSSES).index(loss), *lam, shared_bytes, blocks)
        memory.append(
            cuda.head_similarity(name(dtype), data, *how, results, array(similarity), seed)
        )
        similarities.append(similarity)

    g, d_features, d_weight, *biases = run([head, tuple(features.shape), head, *bias], dtype, call)
    for other in similarities[1:]:
        assert array(other).tobytes() == array(similarities[0]).tobytes()
    g_bias, d_bias = biases or (None, None)
    return HeadSimilarity(g, g_bias, similarities[0], d_features, d_weight, d_bias), memory[0]


def compare(args: list[Any], loss: str, **weights: float) -> None:
    check(emulated(args, loss, **weights)[0], args, loss, **weights)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_matches_autograd(loss: str, weights: str, bias: bool) -> None:
    for size in SIZES:
        compare(problem(size, loss, 2, bias=bias), loss, **WEIGHTS[weights])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_dtype(loss: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        compare(problem(size, loss, 2, dtype), loss, **MIXTURE)


def test_more_examples_and_classes_than_threads() -> None:
    for size in ((300, 2, 3), (3, 300, 2), (2, 3, 600)):
        for loss in LOSSES:
            compare(problem(size, loss, 1), loss, **MIXTURE)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_buffers_in_shared_memory_or_scratch(dtype: torch.dtype) -> None:
    loss, args = "cross_entropy", problem((6, 4, 40), dtype=dtype)
    element = 8 if dtype == torch.float64 else 4
    examples, direction = (3 * 6 + 2) * 4, 4 * 40
    expected, (shared, scratch) = emulated(args, loss, **MIXTURE)
    assert (shared, scratch) == (examples + direction, 0)
    for capacity, in_shared in (
        (0, 0),
        (examples, examples),
        (direction, direction),
        (examples + direction - 1, direction if direction > examples else examples),
    ):
        found, (shared, scratch) = emulated(args, loss, capacity * element, **MIXTURE)
        assert shared <= capacity
        assert shared + scratch == examples + direction
        assert shared in (in_shared, examples)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shared_bytes", [0, SHARED_BYTES])
@pytest.mark.parametrize("loss", LOSSES)
def test_more_tasks_than_blocks(loss: str, shared_bytes: int) -> None:
    args = problem((7, 3, 33), loss, 5)
    expected, _ = emulated(args, loss, **MIXTURE)
    found, _ = emulated(args, loss, shared_bytes, blocks=2, **MIXTURE)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    check(found, args, loss, **MIXTURE)


def test_ignored_targets() -> None:
    args = problem((7, 3, 20))
    args[2][:, :4] = -100
    args[2][1] = -100  # a mean over nothing: the loss is NaN, its gradient 0
    compare(args, "cross_entropy", **MIXTURE)


@pytest.mark.parametrize("number", [-1, 3, 2**40])
def test_an_invalid_class_gives_nan(number: int) -> None:
    args = problem((7, 3, 20))
    args[2][1, 3] = number
    args[2][:, 5] = -100
    found, _ = emulated(args, "cross_entropy", **MIXTURE)
    for t in found:
        assert t is not None
        assert t.flatten(1).isnan().any(1).tolist() == [False, True, False]
    assert found.grad_weight[1].isnan().all()
    assert found.d_weight[1].isnan().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_no_examples_or_no_tasks(loss: str) -> None:
    compare(problem((0, 3, 20), loss), loss, **MIXTURE)
    found, _ = emulated(problem((5, 3, 20), loss, tasks=0), loss)
    assert found.d_features.shape == (0, 5, 20)


def on_gpu(args: list[Any]) -> list[Any]:
    return [t if t is None else t.cuda() for t in args]


def on_cpu(found: HeadSimilarity) -> HeadSimilarity:
    return HeadSimilarity(*(t if t is None else t.cpu() for t in found))


@needs_gpu
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_gpu_matches_autograd(loss: str, dtype: torch.dtype, bias: bool) -> None:
    for size in (*SIZES, (100, 20, 1600), (64, 1000, 130)):
        args = problem(size, loss, 33, dtype, bias)
        found = ops.head_similarity(*on_gpu(args), loss=loss, **MIXTURE)
        check(on_cpu(found), args, loss, **MIXTURE)


@needs_gpu
def test_gpu_without_synchronization_and_in_a_graph() -> None:
    args = on_gpu(problem((25, 5, 800), tasks=8, dtype=torch.float32))

    def call() -> list[Tensor | None]:
        return list(ops.head_similarity(*args, loss="cross_entropy", **MIXTURE))

    expected = call()
    without_synchronization(call)
    found = replayed(call)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_gpu
def test_gpu_limit() -> None:
    args = on_gpu(problem((65, 256, 256), tasks=1))
    with pytest.raises(RuntimeError, match="on CUDA at most 4194304 examples times classes"):
        kernels.head_similarity.default(*args, 1, 1.0, 0.0, 0.0)
    found = ops.head_similarity(*args, loss="cross_entropy")
    check(on_cpu(found), [t.cpu() for t in args], "cross_entropy")
