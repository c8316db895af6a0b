"""Normalisation, activations and losses in learners: which run as compiled ops, and exactly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._common.memory import peak_bytes
from fastmeta import MetaLearner, TaskBatch, ops
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.functional import twice_differentiable
from fastmeta.functional._calls import compiled_calls
from fastmeta.metagrad import Exact, FirstOrder, Recursion
from tests.helpers.reference_loops import LR, reference_meta_gradients
from tests.helpers.transformers import GPT, language_batch

NAMES = ["layer_norm", "rms_norm", "gelu", "silu", "cross_entropy", "linear_cross_entropy"]
TORCHS = {name: getattr(F, name) for name in NAMES if hasattr(F, name)}


class Gated(nn.Module):
    """A block with RMS normalisation and a gated MLP, as in Llama."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.norm, self.act = nn.RMSNorm(width), activation
        self.gate, self.up = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(self.act(self.gate(h)) * self.up(h))


def gated(activation: nn.Module) -> tuple[nn.Module, TaskBatch]:
    module = nn.Sequential(nn.Embedding(7, 6), Gated(6, activation), nn.Linear(6, 5)).double()
    x, y = torch.randint(7, (2, 2, 4)), torch.randint(5, (2, 2, 4))
    return module, TaskBatch(x[0], y[0], x[1], y[1])


def _noted(names: list[str], name: str, op: Any, *args: Any, **options: Any) -> Any:
    names.append(name)
    return op(*args, **options)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the ops that are called."""
    names: list[str] = []
    for name in NAMES:
        monkeypatch.setattr(ops, name, partial(_noted, names, name, getattr(ops, name)))
    return names


def learner(module: nn.Module, metagrad: Any, loss: Any = F.cross_entropy, **options: Any) -> Any:
    options.setdefault("adaptation", SGD(LR, 2))
    return MetaLearner(module, loss, metagrad=metagrad, aggregation=Mean(), **options)


NETWORKS: dict[str, tuple[Callable[[], tuple[nn.Module, TaskBatch]], set[str]]] = {
    "GPT": (
        lambda: (GPT(9).double(), language_batch(9)),
        {"layer_norm", "gelu", "cross_entropy"},
    ),
    "gated, SiLU": (lambda: gated(nn.SiLU()), {"rms_norm", "silu", "cross_entropy"}),
    "gated, GELU": (
        lambda: gated(nn.GELU(approximate="tanh")),
        {"rms_norm", "gelu", "cross_entropy"},
    ),
}


def test_torch_s_silu_has_no_forward_over_reverse() -> None:
    """Without the op, ``hvp="forward"`` is impossible; once this fails, its docstring is wrong."""
    module, batch = gated(nn.SiLU())
    with pytest.raises(NotImplementedError, match="silu_backward"):
        learner(module, Recursion(hvp="forward"), fuse=False).meta_gradient(batch)


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_plain_autograd(name: str, engine: Any, used: list[str]) -> None:
    make, names = NETWORKS[name]
    module, batch = make()
    loss: Any = nn.CrossEntropyLoss()
    with sdpa_kernel(SDPBackend.MATH):
        expected = reference_meta_gradients(module, batch, 2, True, loss).mean(0)
    assert not used
    for metagrad in (Exact(), Recursion(), Recursion(graphs=0), Recursion(hvp="forward")):
        used.clear()
        found, _ = learner(module, metagrad, loss, engine=engine).meta_gradient(batch)
        assert (found - expected).norm() <= 1e-12 * expected.norm()
        assert set(used) == names
    assert all(getattr(F, name) is function for name, function in TORCHS.items())


def test_off_and_first_order(used: list[str]) -> None:
    module, batch = gated(nn.SiLU())
    learner(module, Exact(), fuse=False).meta_gradient(batch)
    learner(module, FirstOrder()).meta_gradient(batch)
    assert not used


def test_under_autocast(used: list[str]) -> None:
    module, batch = GPT(33), language_batch(33)
    results = [
        learner(module, Exact(), fuse=fuse, autocast=torch.bfloat16).meta_gradient(batch)[0]
        for fuse in (True, False)
    ]
    assert set(used) == {"layer_norm", "gelu", "cross_entropy"}
    assert torch.cosine_similarity(*results, 0) > 0.99


def call(name: str, *args: Any, **options: Any) -> Any:
    with twice_differentiable(), compiled_calls():
        return getattr(F, name)(*args, **options)


class Subclass(torch.Tensor):
    pass


X, Z, Y = torch.randn(3, 4), torch.randn(3, 5), torch.tensor([0, 4, -100])
SHAPE, W = (4,), torch.rand(4)
FUSED: dict[str, tuple[Any, ...]] = {
    "layer_norm": (X, SHAPE),
    "layer_norm with a weight": (X, SHAPE, W, None, 0.1),
    "layer_norm in bfloat16": (X.bfloat16(), [4], W, W),
    "rms_norm": (X, SHAPE, None),
    "gelu": (X,),
    "silu": (X,),
    "cross_entropy": (Z, Y),
    "cross_entropy of images": (torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))),
    "cross_entropy of one": (Z[0], Y[0]),
}
LEFT: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "layer_norm of integers": ((X, SHAPE, W.double(), W.double()), {}),
    "rms_norm of two dtypes": ((X.bfloat16(), SHAPE, W), {}),
    "gelu of a subclass": ((X.as_subclass(Subclass),), {}),
    "silu on meta": ((X.to("meta"),), {}),
    "cross_entropy with class weights": ((Z, Y, torch.rand(5)), {}),
    "cross_entropy with probabilities": ((Z, Z.softmax(1)), {}),
    "cross_entropy with old options": ((Z, Y), {"size_average": False}),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused(name: str, used: list[str]) -> None:
    function, args = name.split()[0], FUSED[name]
    torch.testing.assert_close(call(function, *args), getattr(F, function)(*args))
    assert used == [function]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LEFT)
def test_left_to_torch(name: str, used: list[str]) -> None:
    function, (args, options) = name.split()[0], LEFT[name]
    results = []
    for run in (partial(call, function), getattr(F, function)):
        try:
            results.append(run(*args, **options))
        except RuntimeError as error:
            results.append(str(error))
    assert not used
    if not isinstance(results[1], Tensor) or results[1].is_meta:
        assert type(results[0]) is type(results[1])
    else:
        assert torch.equal(*results)


def test_an_invalid_class_is_torchs_error() -> None:
    with pytest.raises(IndexError, match="from 0 to 4, or ignore_index -100, got 5"):
        call("cross_entropy", Z, Y + 1)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch before 2.13")
def test_linear_cross_entropy(used: list[str]) -> None:
    weight, bias = torch.randn(5, 4), torch.randn(5)
    options: dict[str, Any] = {"linear_bias": bias, "label_smoothing": 0.1}
    expected = F.cross_entropy(F.linear(X, weight, bias), Y, label_smoothing=0.1)
    torch.testing.assert_close(call("linear_cross_entropy", X, weight, Y, **options), expected)
    assert used == ["linear_cross_entropy"]
    losses = call("linear_cross_entropy", X, weight, Y, reduction="none")
    torch.testing.assert_close(losses, F.cross_entropy(X @ weight.T, Y, reduction="none"))
    assert used == ["linear_cross_entropy", "cross_entropy"]  # torch's calls the other one


class Tokens(nn.Module):
    """The loss of predicting every token from the one before."""

    def __init__(self, vocabulary: int, loss: Any) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(64, 16), nn.Linear(16, vocabulary)
        self.loss = loss

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.embedding(x[:, :-1]), self.head.weight, x[:, 1:])
        return loss


@pytest.mark.parametrize("metagrad", [Exact(), Recursion(hvp="forward")], ids=["exact", "forward"])
def test_logits_are_never_kept(metagrad: Any) -> None:
    """512 tokens have 33 MB of logits; gradients of the head are 1 MB."""

    def logits_at_once(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy((x @ weight.T).flatten(0, -2), y.flatten())

    x = torch.randint(64, (2, 1, 1, 513))
    batch = TaskBatch(x[0], x[0], x[1], x[1])
    peaks, results = [], []
    for loss in (ops.linear_cross_entropy, logits_at_once):
        torch.manual_seed(0)
        module = Tokens(16384, loss)
        own = learner(module, metagrad, lambda loss, y: loss, adaptation=SGD(LR, 1))
        results.append(own.meta_gradient(batch)[0])
        peaks.append(peak_bytes(partial(own.meta_gradient, batch)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
    assert peaks[0] < 0.5 * peaks[1]
