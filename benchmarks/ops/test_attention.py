"""Attention and its derivatives, against torch's attention and the plain composition.

Run with ``pytest benchmarks/ops/test_attention.py -s``. Times and peak memory of one call on 4
heads of width 64: forward, backward, double backward (along random directions of all three
gradients), and forward over reverse. torch's fused attention has the first two only.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._common.memory import peak_bytes
from benchmarks._common.timing import interleaved, report
from fastmeta import ops

HEADS, WIDTH = 4, 64
Attention = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def composed(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def fused(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def fastmeta(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return ops.attention(q, k, v, causal=causal)


CONTENDERS = {"composition": composed, "torch, fused": fused, "fastmeta": fastmeta}


class Calls:
    """The derivatives of one attention, each as a call that leaves its graph for the next."""

    def __init__(self, tokens: int, causal: bool) -> None:
        self.leaves = [torch.randn(1, HEADS, tokens, WIDTH).requires_grad_() for _ in range(3)]
        self.dout, *self.directions = torch.randn(4, 1, HEADS, tokens, WIDTH)
        self.dout.requires_grad_()
        self.causal = causal

    def forward(self, attention: Attention) -> Callable[[], object]:
        """Forward pass, recording a graph."""
        return lambda: attention(*self.leaves, self.causal)

    def backward(self, attention: Attention) -> Callable[[], tuple[Tensor, ...]]:
        """The gradients of queries, keys and values."""
        out = attention(*self.leaves, self.causal)
        return lambda: torch.autograd.grad(out, self.leaves, self.dout, retain_graph=True)

    def double_backward(self, attention: Attention) -> Callable[[], tuple[Tensor, ...]]:
        """The gradients of these gradients along random directions."""
        out = attention(*self.leaves, self.causal)
        grads = torch.autograd.grad(out, self.leaves, self.dout, create_graph=True)
        inputs = [*self.leaves, self.dout]
        return lambda: torch.autograd.grad(grads, inputs, self.directions, retain_graph=True)

    def forward_over_reverse(self, attention: Attention) -> Callable[[], object]:
        """Forward and backward pass with tangents: a Hessian-vector product."""

        def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
            return torch.func.vjp(lambda *t: attention(*t, self.causal), *tensors)[1](
                self.dout.detach()
            )

        primals = tuple(t.detach() for t in self.leaves)
        return lambda: torch.func.jvp(gradient, primals, tuple(self.directions))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [128, 512, 2048])
@pytest.mark.parametrize("call", ["forward", "backward", "double_backward", "forward_over_reverse"])
def test_attention(call: str, tokens: int, causal: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    calls = Calls(tokens, causal)
    once = call in ("forward", "backward")
    runs = {
        name: getattr(calls, call)(attention)
        for name, attention in CONTENDERS.items()
        if once or attention is not fused
    }
    if call.endswith("backward"):
        for found, expected in zip(runs["fastmeta"](), runs["composition"](), strict=True):
            assert (found - expected).norm() <= 1e-4 * expected.norm()
    timings = interleaved(runs, min_rounds=5)
    peaks = {name: peak_bytes(run) / 1e6 for name, run in runs.items()}
    title = f"{call}, {tokens} tokens, {'causal' if causal else 'full'}, threads {threads}"
    notes = "peak: " + ", ".join(f"{name} {peak:.1f} MB" for name, peak in peaks.items())
    report(title, timings, "fastmeta", notes)
