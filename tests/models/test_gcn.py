from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from fastmeta import TaskBatch, metagrad
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.functional import FunctionalModule
from fastmeta.learners import MetaLearner
from fastmeta.models import GCN

NODES, FEATURES, WAYS = 12, 5, 2


def graph(probability: float = 0.2) -> tuple[Tensor, Tensor]:
    """Features, and edges of a graph whose last node is isolated."""
    chosen = (torch.rand(NODES, NODES) < probability).triu(1)
    chosen[:, -1] = False
    edges = chosen.nonzero().T
    turned = torch.where(torch.rand(edges.shape[1]) < 0.5, edges, edges.flip(0))
    return torch.randn(NODES, FEATURES, dtype=torch.float64), turned


def network(hidden: Sequence[int] = (4, 3)) -> GCN:
    model = GCN(*graph(), WAYS, hidden).double()
    for layer in model.convolutions:
        torch.nn.init.normal_(layer.bias)
    return model


def dense(model: GCN, features: Tensor, edges: Tensor) -> Tensor:
    """Outputs of all nodes, by products of dense matrices."""
    adjacency = torch.eye(len(features), dtype=torch.float64)
    adjacency[edges[0], edges[1]] = adjacency[edges[1], edges[0]] = 1
    scale = torch.diag(adjacency.sum(1) ** -0.5)
    hidden = features
    for layer in model.convolutions:
        hidden = torch.relu(scale @ adjacency @ scale @ hidden @ layer.weight.T + layer.bias)
    return hidden @ model.head.weight.T + model.head.bias


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.floats(0, 1))
def test_against_dense_matrices(hidden: list[int], probability: float) -> None:
    features, edges = graph(probability)
    model = GCN(features, edges, WAYS, hidden).double()
    for layer in model.convolutions:
        torch.nn.init.normal_(layer.bias)
    whole = dense(model, features, edges)
    nodes = torch.randint(NODES, (7,))  # some twice
    torch.testing.assert_close(model(nodes), whole[nodes], atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(model(torch.arange(NODES)), whole, atol=1e-12, rtol=1e-10)
    assert model(nodes[:0]).shape == (0, WAYS)


@pytest.mark.parametrize("hidden", [(4,), (4, 3)])
def test_derivatives_of_both_orders(hidden: tuple[int, ...]) -> None:
    model, nodes = network(hidden), torch.randint(NODES, (3,))
    names = [name for name, _ in model.named_parameters()]

    def run(*params: Tensor) -> Tensor:
        output: Tensor = functional_call(model, dict(zip(names, params, strict=True)), (nodes,))
        return output.tanh()

    params = tuple(p.detach().requires_grad_() for p in model.parameters())
    assert gradcheck(run, params)
    assert gradgradcheck(run, params)


def test_the_graph_is_constant_and_follows_the_module() -> None:
    features, edges = graph()
    model = GCN(features.float(), edges, WAYS)
    assert not FunctionalModule(model).clone_buffers()
    assert {name.split(".")[0] for name in model.state_dict()} == {"convolutions", "head"}
    nodes = torch.arange(NODES)
    single = model(nodes)
    wide = copy.deepcopy(model).double()
    assert wide(nodes).dtype == torch.float64
    assert single.dtype == model(nodes).dtype == torch.float32  # a copy has a graph of its own
    torch.testing.assert_close(wide(nodes).float(), single, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_graph_follows_to_a_gpu() -> None:
    model, nodes = network(), torch.arange(NODES)
    expected = model(nodes)
    torch.testing.assert_close(model.cuda()(nodes.cuda()).cpu(), expected, atol=1e-12, rtol=1e-10)


def meta_gradient(model: GCN, batch: TaskBatch, rule: metagrad.MetaGradient, engine: str) -> Tensor:
    learner = MetaLearner(
        model,
        F.cross_entropy,
        adaptation=SGD(lr=0.5, steps=2),
        metagrad=rule,
        aggregation=Mean(),
        engine=engine,
    )
    return learner.meta_gradient(batch)[0]


def tasks() -> TaskBatch:
    y = torch.arange(WAYS).expand(3, -1)
    nodes = torch.randint(NODES, (3, 3 * WAYS))
    return TaskBatch(nodes[:, :WAYS], y, nodes[:, WAYS:], y.repeat(1, 2))


@pytest.mark.parametrize("hidden", [(4,), (4, 3)])
def test_exact_meta_gradients_agree(hidden: tuple[int, ...]) -> None:
    model, batch = network(hidden), tasks()
    exact = meta_gradient(model, batch, metagrad.Exact(), "loop")
    again = meta_gradient(model, batch, metagrad.Recursion(), "loop")
    torch.testing.assert_close(again, exact, atol=1e-10, rtol=1e-8)
    assert exact.any()


def test_one_convolution_runs_batched() -> None:
    model, batch = network((4,)), tasks()
    loop, batched = (meta_gradient(model, batch, metagrad.Exact(), e) for e in ("loop", "batched"))
    torch.testing.assert_close(batched, loop, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    ("edges", "hidden", "message"),
    [
        ([[0, 1], [1, 0]], (4,), "each edge once, in one direction, and no self-loop; got 2"),
        ([[0, 0], [1, 1]], (4,), "each edge once"),
        ([[0], [0]], (4,), "no self-loop; got 2 repeated entries"),
        ([[0], [1]], (), "at least 1"),
        ([[0], [1]], (0,), r"got 2 and \[5, 0\]"),
    ],
)
def test_invalid_arguments_are_refused(
    edges: list[list[int]], hidden: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GCN(torch.zeros(NODES, FEATURES), torch.tensor(edges), WAYS, hidden)
