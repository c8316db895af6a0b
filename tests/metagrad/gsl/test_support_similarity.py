"""The similarity loss of GSL against autograd on the loss itself, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adam, LayerPattern, MetaSGD
from fastmeta.aggregation import AGGREGATIONS, Mean
from fastmeta.metagrad import GSL, Exact, FirstOrder, MetaGradient, Recursion
from tests.helpers.problems import MODULES, mlp, tasks

LR = 0.3
HEAD = 2  # weight and bias


def deep() -> nn.Module:
    layers = (nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    return nn.Sequential(nn.Flatten(), *layers).double()


def gradient(
    module: nn.Module, batch: TaskBatch, way: MetaGradient, inner: Any = None, **options: Any
) -> Tensor:
    learner = MetaLearner(
        copy.deepcopy(module),
        options.pop("loss", F.cross_entropy),
        adaptation=copy.deepcopy(inner) or SGD(LR),
        metagrad=way,
        aggregation=options.pop("aggregation", None) or Mean(),
        **{"engine": "loop", **options},
    )
    return learner.meta_gradient(batch)[0]


def by_autograd(
    module: nn.Module,
    batch: TaskBatch,
    steps: int,
    eta: float,
    weights: tuple[float, float, float],
    loss: Any = F.cross_entropy,
) -> Tensor:
    """`v <- v + a eta grad L(theta_k; v)`, L written down and differentiated by autograd."""
    names = [name for name, _ in module.named_parameters()]
    lam_d, lam_c, lam_2 = weights

    def support(params: list[Tensor], task: Any) -> Tensor:
        values = dict(zip(names, params, strict=True))
        return loss(functional_call(module, values, (task.support_x,)), task.support_y)

    total: Tensor | float = 0.0
    for task in batch:
        trace = [[p.detach() for p in module.parameters()]]
        for _ in range(steps):
            leaves = [p.detach().requires_grad_() for p in trace[-1]]
            grads = torch.autograd.grad(support(leaves, task), leaves)
            trace.append([p - LR * g for p, g in zip(trace[-1], grads, strict=True)])
        fast = [p.requires_grad_() for p in trace.pop()]
        values = dict(zip(names, fast, strict=True))
        query = loss(functional_call(module, values, (task.query_x,)), task.query_y)
        v = list(torch.autograd.grad(query, fast))
        for point in reversed(trace):
            theta = [p.detach().requires_grad_() for p in point]
            head = torch.autograd.grad(support(theta, task), theta[-HEAD:], create_graph=True)
            g, w = (torch.cat([t.flatten() for t in ts]) for ts in (head, v[-HEAD:]))
            norms = (g.norm() * w.norm()).detach()
            similarity = (
                -lam_d * g.dot(w)
                + lam_c * norms * (1 - g.dot(w) / (g.norm() * w.norm()))
                + lam_2 / 2 * (g - w).square().sum()
            )
            slopes = torch.autograd.grad(similarity, theta)
            v = [a + LR * eta * s for a, s in zip(v, slopes, strict=True)]
        total = total + torch.cat([t.flatten() for t in v]) / len(batch)
    assert isinstance(total, Tensor)
    return total


WEIGHTS = {
    "inner product": (1.0, 0.0, 0.0),
    "cosine": (0.0, 1.0, 0.0),
    "L2": (0.0, 0.0, 1.0),
    "all": (0.7, 0.4, 0.3),
}


@pytest.mark.parametrize(
    ("graphs", "engine"), [(None, "loop"), (1, "loop"), (0, "loop"), (None, "mlp")]
)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_loss_against_autograd(name: str, steps: int, graphs: int | None, engine: str) -> None:
    module, batch, weights = deep(), tasks(2), WEIGHTS[name]
    way = GSL(0.8, *weights, graphs=graphs)
    expected = by_autograd(module, batch, steps, 0.8, weights)
    found = gradient(module, batch, way, SGD(LR, steps), engine=engine)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    plain = gradient(module, batch, FirstOrder(), SGD(LR, steps))
    assert (found - plain).norm() > 1e-4 * plain.norm()


def test_other_losses() -> None:
    def absolute(output: Tensor, y: Tensor) -> Tensor:
        return (output - F.one_hot(y, 3)).abs().pow(1.5).mean()

    module, batch = deep(), tasks(2)
    for loss in (absolute, lambda output, y: F.mse_loss(output, F.one_hot(y, 3).to(output))):
        expected = by_autograd(module, batch, 2, 1.0, WEIGHTS["all"], loss)
        found = gradient(module, batch, GSL(1.0, *WEIGHTS["all"]), SGD(LR, 2), loss=loss)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


INNER = {
    "sgd": SGD(LR, 3),
    "momentum": SGD(LR, 3, momentum=0.9),
    "adam": Adam(0.01, 2, eps=0.01),
    "learned rates": MetaSGD(LR, 2),
    "lambda": LayerPattern(SGD(LR, 2), "head/full"),
}


@pytest.mark.parametrize("inner", INNER)
def test_eta_0_is_fomaml_bitwise(inner: str) -> None:
    module, batch = mlp(), tasks(3, torch.float32)
    found = gradient(module, batch, GSL(0.0), INNER[inner])
    assert torch.equal(found, gradient(module, batch, FirstOrder(), INNER[inner]))


@pytest.mark.parametrize("inner", INNER)
def test_the_inner_product_is_mixed_order(inner: str) -> None:
    module, batch = deep(), tasks(2)
    for layers, graphs in (("head", None), ("head", 0), ("010", 1), ("all", None)):
        found = gradient(module, batch, GSL(layers=layers, graphs=graphs), INNER[inner])
        expected = gradient(module, batch, Exact(layers), INNER[inner])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_with_an_adapted_head_it_is_maml() -> None:
    module, batch, anil = deep(), tasks(2), LayerPattern(SGD(LR, 3), "head")
    expected = gradient(module, batch, Exact(), anil)
    found = gradient(module, batch, GSL(), anil)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("module", ["batch norm", "running batch norm", "tied", "frozen"])
def test_networks_and_engines(module: str) -> None:
    net, batch = MODULES[module]().double(), tasks(3)
    for weights in (WEIGHTS["inner product"], (0.5, 0.0, 0.5)):
        way = GSL(1.0, *weights)
        loop, batched = (
            gradient(net, batch, way, SGD(LR, 2), engine=engine) for engine in ("loop", "batched")
        )
        torch.testing.assert_close(batched, loop, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="GSL does not declare task_batchable"):
        gradient(net, batch, GSL(lam_c=1.0), engine="batched")


@pytest.mark.parametrize("aggregation", ["agreement", "pcgrad", "gsl"])
def test_aggregations(aggregation: str) -> None:
    module, batch = deep(), tasks(2)
    found, expected = (
        gradient(module, batch, way, SGD(LR, 2), aggregation=AGGREGATIONS[aggregation]())
        for way in (GSL(), Recursion(layers="head"))
    )
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("engine", ["loop", "mlp"])
def test_schedules(engine: Any) -> None:
    module, batch = deep(), tasks(2)
    learner = MetaLearner(
        module,
        F.cross_entropy,
        adaptation=SGD(LR),
        metagrad=GSL(schedule="late:1"),
        aggregation=Mean(),
        engine=engine,
    )
    found = [learner.meta_gradient(batch)[0] for _ in range(2)]
    torch.testing.assert_close(found[0], gradient(module, batch, FirstOrder()))
    torch.testing.assert_close(found[1], gradient(module, batch, GSL()))


def test_by_name() -> None:
    module, batch = deep(), tasks(2)
    learner = fastmeta.GSL(
        copy.deepcopy(module), F.cross_entropy, inner_lr=LR, variant="similarity", lam_c=0.5
    )
    expected = gradient(module, batch, GSL(lam_c=0.5))
    torch.testing.assert_close(learner.meta_gradient(batch)[0], expected)


@pytest.mark.parametrize("options", [{"lam_d": -1}, {"lam_c": "a"}, {"graphs": 0.5}, {"eta": None}])
def test_invalid_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        GSL(**options)


def test_no_second_derivative_below_the_head() -> None:
    graphs = []

    class Sine(torch.autograd.Function):
        """Notes whether its backward pass is itself differentiated."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            graphs.append(torch.is_grad_enabled())
            return grad * ctx.saved_tensors[0].cos()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(Sine.apply(self.first(x.flatten(1))))

    module, batch = Network().double(), tasks(1)
    gradient(module, batch, Exact(), SGD(LR, 2))
    assert any(graphs)
    for way in (GSL(), GSL(graphs=0), Exact("head")):
        graphs.clear()
        gradient(module, batch, way, SGD(LR, 2))
        # Of two inner steps and the query set once, of the similarity loss of two steps once.
        assert len(graphs) == 5
        assert not any(graphs)
