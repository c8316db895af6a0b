"""The ops of a transformer block besides attention, against torch's.

Run with ``pytest benchmarks/ops/test_block.py -s``: CPU time of one thread and peak memory. Alone:
a training step (forward and backward), a Hessian-vector product by forward over reverse and one by
reverse over reverse, of 512 rows. Together: the same of a GPT (4 layers, width 256, 4 heads,
vocabulary 1,024) on 4 x 128 and 1 x 1,024 tokens. With a large vocabulary: the loss of a linear
layer's outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fastmeta.metagrad._hvp import hvp_forward, hvp_reverse
from torch import Tensor
from torch.autograd import forward_ad

from benchmarks._common.memory import peak_bytes
from benchmarks._common.timing import interleaved, report
from fastmeta import ops
from fastmeta.functional import FunctionalModule, FusedModule, twice_differentiable
from tests.helpers.transformers import GPT

ROWS, WIDTH, CLASSES = 512, 256, 1024
CALLS = ("step", "forward over reverse", "reverse over reverse")
Y = torch.arange(ROWS) % CLASSES


def cpu(run: Callable[[], object]) -> float:
    """Seconds of CPU time of one call: other work on the machine does not count."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


class Case:
    """A function and its arguments' shapes, as torch's and as an op."""

    def __init__(self, torchs: Any, op: Any, *shapes: tuple[int, ...]) -> None:
        self.functions = {"torch": torchs, "fastmeta": op}
        self.leaves = [torch.randn(shape).requires_grad_() for shape in shapes]
        self.moves = [torch.randn_like(t) for t in self.leaves]

    def call(self, name: str, function: Callable[..., Tensor]) -> Callable[[], object]:
        """One of ``CALLS``."""
        dout, tdout = torch.randn(2, *function(*self.leaves).shape)
        return {
            "step": lambda: torch.autograd.grad(function(*self.leaves), self.leaves, dout),
            "forward over reverse": lambda: self._forward(function, dout, tdout),
            "reverse over reverse": lambda: self._reverse(function, dout),
        }[name]

    def _forward(self, function: Callable[..., Tensor], dout: Tensor, tdout: Tensor) -> object:
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(t, m) for t, m in zip(self.leaves, self.moves, strict=True)
            ]
            out = function(*duals)
            grads = torch.autograd.grad(out, duals, forward_ad.make_dual(dout, tdout))
            return [forward_ad.unpack_dual(g).tangent for g in grads]

    def _reverse(self, function: Callable[..., Tensor], dout: Tensor) -> object:
        dout = dout.clone().requires_grad_()
        grads = torch.autograd.grad(function(*self.leaves), self.leaves, dout, create_graph=True)
        inputs = [*self.leaves, dout]
        return torch.autograd.grad(grads, inputs, self.moves, allow_unused=True)


def cases() -> dict[str, Case]:
    norm = (ROWS, WIDTH), (WIDTH,)
    hidden = (ROWS, 4 * WIDTH)

    def tanh(function: Any) -> Any:
        return lambda x: function(x, approximate="tanh")

    return {
        "layer_norm": Case(
            lambda x, w, b: F.layer_norm(x, (WIDTH,), w, b),
            lambda x, w, b: ops.layer_norm(x, (WIDTH,), w, b),
            *norm,
            (WIDTH,),
        ),
        "rms_norm": Case(
            lambda x, w: F.rms_norm(x, (WIDTH,), w),
            lambda x, w: ops.rms_norm(x, (WIDTH,), w),
            *norm,
        ),
        "gelu": Case(F.gelu, ops.gelu, hidden),
        "gelu tanh": Case(tanh(F.gelu), tanh(ops.gelu), hidden),
        "silu": Case(F.silu, ops.silu, hidden),
        "cross_entropy": Case(
            lambda z: F.cross_entropy(z, Y), lambda z: ops.cross_entropy(z, Y), (ROWS, CLASSES)
        ),
    }


def measure(title: str, runs: dict[str, Callable[[], object]]) -> None:
    timings = interleaved(runs, seconds=1.0, min_rounds=5, clock=cpu)
    peaks = {name: peak_bytes(run) / 1e6 for name, run in runs.items()}
    notes = "peak: " + ", ".join(f"{name} {peak:.1f} MB" for name, peak in peaks.items())
    report(title, timings, list(runs)[-1], notes)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", cases())
def test_alone(name: str, call: str) -> None:
    torch.set_num_threads(1)
    case = cases()[name]
    runs = {who: case.call(call, function) for who, function in case.functions.items()}
    if name == "silu" and call == "forward over reverse":
        del runs["torch"]  # it has none
    measure(f"{name}, {call}", runs)


@contextmanager
def learners_context(call: str) -> Iterator[None]:
    if call == "step":
        yield
    else:
        with twice_differentiable():
            yield


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("n", "tokens"), [(4, 128), (1, 1024)])
def test_gpt(n: int, tokens: int, call: str) -> None:
    torch.set_num_threads(1)
    module = GPT(tokens, WIDTH, 4, 4, CLASSES)
    x, y = torch.randint(CLASSES, (2, n, tokens))
    runs: dict[str, Callable[[], object]] = {}
    for name, kind in (("torch", FunctionalModule), ("fastmeta", FusedModule)):
        functional = kind(module)
        params = [p.detach().requires_grad_() for p in functional.params]
        moves = [0.01 * torch.randn_like(p) for p in params]

        def run(functional: Any = functional, params: Any = params, moves: Any = moves) -> object:
            def loss(params: Any) -> Tensor:
                return functional.evaluate(F.cross_entropy, params, {}, x, y)[0]

            with learners_context(call):
                if call == "step":
                    return torch.autograd.grad(loss(params), params)
                hvp = hvp_forward if call == "forward over reverse" else hvp_reverse
                return hvp(loss, params, moves)

        runs[name] = run
    measure(f"GPT, {n} x {tokens} tokens, {call}", runs)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("vocabulary", [32768])
def test_large_vocabulary(vocabulary: int, call: str) -> None:
    torch.set_num_threads(1)
    y = torch.randint(vocabulary, (ROWS,))
    case = Case(
        lambda x, w: F.cross_entropy(x @ w.mT, y),
        lambda x, w: ops.linear_cross_entropy(x, w, y),
        (ROWS, WIDTH),
        (vocabulary, WIDTH),
    )
    runs = {who: case.call(call, function) for who, function in case.functions.items()}
    measure(f"linear and cross entropy, {vocabulary} classes, {call}", runs)
