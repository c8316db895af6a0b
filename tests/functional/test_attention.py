"""Attention in learners: which calls run as the compiled op, exactly, and in little memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._common.memory import peak_bytes
from fastmeta import MAML, MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adam
from fastmeta.aggregation import Mean
from fastmeta.functional import twice_differentiable, watch_attention
from fastmeta.functional._calls import compiled_calls
from fastmeta.metagrad import Exact, FirstOrder, Implicit, MultiStep, Recursion
from tests.helpers.reference_loops import LR, reference_meta_gradients
from tests.helpers.transformers import GPT, Encoder, language_batch

METAGRADS: dict[str, Any] = {
    "exact": Exact,
    "last layer": lambda: Exact(layers="head"),
    "recursion": Recursion,
    "recursion, forward": lambda: Recursion(hvp="forward"),
    "multi-step": MultiStep,
    "implicit": lambda: Implicit(lam=1.0),
}
TORCHS = F.scaled_dot_product_attention


def learner(module: nn.Module, metagrad: Any, **options: Any) -> MetaLearner:
    options.setdefault("adaptation", SGD(LR, 2))
    return MetaLearner(module, F.cross_entropy, metagrad=metagrad, aggregation=Mean(), **options)


def network(name: str) -> tuple[nn.Module, TaskBatch]:
    if name == "GPT":
        return GPT(37).double(), language_batch(37)
    batch = language_batch(9, n=4)
    y = batch.support_y[..., 0], batch.query_y[..., 0]
    return Encoder().double(), TaskBatch(batch.support_x, y[0], batch.query_x, y[1])


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("name", ["GPT", "encoder"])
def test_equals_plain_autograd(name: str, engine: Any) -> None:
    module, batch = network(name)
    with sdpa_kernel(SDPBackend.MATH):
        expected = reference_meta_gradients(module, batch, 2, True, F.cross_entropy).mean(0)
    for metagrad in (Exact(), Recursion(), Recursion(graphs=0), Recursion(hvp="forward")):
        with watch_attention() as calls:
            found, _ = learner(module, metagrad, engine=engine).meta_gradient(batch)
        assert (found - expected).norm() <= 1e-12 * expected.norm()
        assert calls
        assert all(call.reason is None for call in calls)


@pytest.mark.parametrize("inner", [SGD(LR, 2), Adam(0.1, 2)], ids=["SGD", "Adam"])
@pytest.mark.parametrize("name", METAGRADS)
def test_equals_the_learner_without_fusion(name: str, inner: Any) -> None:
    module, batch = network("GPT")
    found, expected = (
        learner(module, METAGRADS[name](), fuse=fuse, adaptation=inner).meta_gradient(batch)[0]
        for fuse in (True, False)
    )
    assert (found - expected).norm() <= 1e-9 * expected.norm()


def test_off_and_first_order() -> None:
    module, batch = network("GPT")
    with watch_attention() as calls:
        learner(module, Exact(), fuse=False).meta_gradient(batch)
        learner(module, FirstOrder()).meta_gradient(batch)
    assert not calls
    assert F.scaled_dot_product_attention is TORCHS


def test_dropout_is_left_to_torch() -> None:
    batch = language_batch(9)
    module = GPT(9, dropout=0.2)
    results = []
    for fuse in (True, False):
        torch.manual_seed(0)
        with watch_attention() as calls:
            results.append(learner(module, Exact(), fuse=fuse).meta_gradient(batch)[0])
        assert {call.reason for call in calls} == ({"dropout"} if fuse else set())
    torch.testing.assert_close(*results)  # other calls are fused


def test_under_autocast() -> None:
    module, batch = GPT(33), language_batch(33)
    results = {}
    for fuse in (True, False):
        with watch_attention() as calls:
            own = learner(module, Exact(), fuse=fuse, autocast=torch.bfloat16)
            results[fuse] = own.meta_gradient(batch)[0]
        assert all(call.reason is None for call in calls)
        assert bool(calls) == fuse
    assert torch.cosine_similarity(results[True], results[False], 0) > 0.99


@pytest.mark.parametrize("metagrad", [Exact, Recursion, lambda: Recursion(hvp="forward")])
def test_peak_memory(metagrad: Any) -> None:
    """A matrix of scores takes 4 MB; with the composition there are a dozen of them."""
    batch = language_batch(512, tasks=1, n=1)
    peaks = {}
    for fuse in (True, False):
        own = learner(GPT(512, 32, 4, 1), metagrad(), fuse=fuse)
        peaks[fuse] = peak_bytes(partial(own.meta_gradient, batch))
    assert peaks[True] < 0.3 * peaks[False]
    assert peaks[False] - peaks[True] > 20e6


def heads(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(*shape, **options)


Q = (2, 4, 5, 8)
BROADCAST = "shapes that are broadcast"
OTHERS: dict[str, tuple[Any, str]] = {
    "dropout": (lambda: ((heads(*Q),) * 3, {"dropout_p": 0.5}), "dropout"),
    "learned bias": (
        lambda: ((heads(*Q),) * 3, {"attn_mask": heads(5, 5, requires_grad=True)}),
        "a mask with a gradient",
    ),
    "batches": (
        lambda: ((heads(*Q), heads(1, *Q[1:]), heads(*Q)), {}),
        BROADCAST,
    ),
    "one head": (lambda: ((heads(*Q), *heads(2, 2, 1, 5, 8)), {}), BROADCAST),
    "two dimensions": (lambda: ((heads(5, 8),) * 3, {}), BROADCAST),
    "meta device": (lambda: ((heads(*Q, device="meta"),) * 3, {}), "not on the CPU"),
    "subclass": (
        lambda: ((nn.Parameter(heads(*Q)), Subclass(heads(*Q)), heads(*Q)), {}),
        "a tensor subclass",
    ),
}


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize("name", OTHERS)
def test_other_calls_are_left_to_torch(name: str) -> None:
    make, reason = OTHERS[name]
    tensors, options = make()
    torch.manual_seed(0)
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(*tensors, **options)
    torch.manual_seed(0)
    with twice_differentiable(), compiled_calls(), watch_attention() as calls:
        found = F.scaled_dot_product_attention(*tensors, **options)
    assert [call.reason for call in calls] == [reason]
    assert found.shape == expected.shape
    assert found.is_meta or torch.equal(found, expected)


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "none": dict,
    "causal": lambda: {"is_causal": True},
    "scale": lambda: {"scale": 0.1},
    "boolean mask": lambda: {"attn_mask": torch.rand(5, 5) > 0.3},
    "additive mask": lambda: {"attn_mask": torch.rand(2, 1, 1, 5)},
    "grouped queries": lambda: {"enable_gqa": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str) -> None:
    options = OPTIONS[name]()
    kv_heads = 2 if "enable_gqa" in options else 4
    tensors = heads(*Q), *heads(2, 2, kv_heads, 5, 8)
    expected = F.scaled_dot_product_attention(*tensors, **options)
    with twice_differentiable(), compiled_calls(), watch_attention() as calls:
        found = F.scaled_dot_product_attention(*tensors, **options)
    torch.testing.assert_close(found, expected)
    assert [(c.query, c.key, c.reason) for c in calls] == [(Q, (2, kv_heads, 5, 8), None)]


def test_wrong_arguments_are_refused_by_torch() -> None:
    q = heads(*Q)
    with (
        twice_differentiable(),
        compiled_calls(),
        pytest.raises(RuntimeError, match="is_causal"),
    ):
        F.scaled_dot_product_attention(q, q, q, torch.zeros(5, 5), is_causal=True)
    assert F.scaled_dot_product_attention is TORCHS


def test_other_threads_keep_torchs() -> None:
    q = heads(*Q)
    found = []
    with twice_differentiable(), compiled_calls(), compiled_calls():
        thread = Thread(target=lambda: found.append(F.scaled_dot_product_attention(q, q, q)))
        with watch_attention() as calls:
            thread.start()
            thread.join()
        assert F.scaled_dot_product_attention is not TORCHS
    assert not calls
    assert F.scaled_dot_product_attention is TORCHS
    torch.testing.assert_close(found[0], F.scaled_dot_product_attention(q, q, q))


def test_a_user_s_own_replacement_stays() -> None:
    def own(*args: Any, **kwargs: Any) -> torch.Tensor:
        return TORCHS(*args, **kwargs)

    F.scaled_dot_product_attention = own
    try:
        MAML(GPT(5), F.cross_entropy, inner_lr=0.1).step(language_batch(5))
        assert F.scaled_dot_product_attention is own
    finally:
        F.scaled_dot_product_attention = TORCHS
