"""The batched engine matches the loop, or explains why it cannot run."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import FOMAML, GSL, MAML, MetaLearner, TaskBatch, metagrad
from fastmeta.adaptation import SGD, Adam, Adaptation, MetaSGD, ProximalSGD
from fastmeta.aggregation import GradientAgreement, Mean
from fastmeta.engines import BatchedEngine
from fastmeta.metagrad import Exact, FirstOrder, MetaGradient, Recursion
from tests.helpers.problems import MODULES, WAYS, Drifting, mlp, tasks

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **MODULES,
    "a buffer that drifts": Drifting,
    "evaluation mode": lambda: MODULES["running batch norm"]().eval(),
    "fused block": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, WAYS),
    ),
    "dropout that rests": lambda: nn.Sequential(mlp(), nn.Dropout(0.5)).eval(),
}  # fmt: skip

METAGRADS: dict[str, Callable[[], MetaGradient]] = {
    "exact": Exact,
    "first order": FirstOrder,
    "gsl": metagrad.GSL,
    "gsl R1": metagrad.GSLCorrection,
    "gsl R1 by layer": lambda: metagrad.GSLCorrection(scope="layer"),
    "gsl R2p": lambda: metagrad.ElementWeights(eta=9.0),
    "recursion": Recursion,
    "recursion, no graph kept": lambda: Recursion(graphs=0),
    "recursion, forward": lambda: Recursion("forward"),
    "reptile": metagrad.Reptile,
    "reptile, support alone": lambda: metagrad.Reptile(use_query=False),
    "multi-step": lambda: metagrad.MultiStep(9),
    "multi-step, first order": lambda: metagrad.MultiStep(9, 9),
}

ADAPTATIONS: dict[str, Callable[[int], Adaptation]] = {
    "sgd": lambda steps: SGD(0.3, steps),
    "momentum": lambda steps: SGD(0.2, steps, momentum=0.8),
    # A bias before BatchNorm has a gradient of rounding errors: eps must be far above it.
    "adam": lambda steps: Adam(0.05, steps, eps=1e-3),
    "proximal": lambda steps: ProximalSGD(0.3, steps, lam=0.8),
}


def compare(
    module: nn.Module,
    batch: TaskBatch,
    metagrad: Callable[[], MetaGradient] = Exact,
    adaptation: Adaptation | None = None,
    loss: Any = F.cross_entropy,
    aggregation: Any = Mean,
) -> None:
    """Compares gradient, task gradients, results and buffers of both engines."""
    seen = []
    for engine in ("loop", "batched"):
        own = copy.deepcopy(module)
        learner = MetaLearner(
            own,
            loss,
            adaptation=SGD(0.3, 2) if adaptation is None else adaptation,
            metagrad=metagrad(),
            aggregation=aggregation(),
            engine=engine,
        )
        flat, result = learner.meta_gradient(batch)
        buffers = learner._step.buffers
        task_gradients = [b.filled.clone() for b in (buffers.outer, buffers.support)]
        seen.append((*task_gradients, *vars(result).values(), *own.buffers(), flat))
    (*_, expected), (*_, found) = seen
    assert expected.norm() > 0
    # GSL per layer normalizes differences with large rounding errors; task gradients follow below.
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    for loop, batched in zip(*(s[:-1] for s in seen), strict=True):
        assert batched.shape == loop.shape
        assert not batched.requires_grad
        torch.testing.assert_close(batched, loop, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("way", METAGRADS)
@pytest.mark.parametrize("network", NETWORKS)
def test_networks(network: str, way: str) -> None:
    compare(NETWORKS[network]().double(), tasks(3), METAGRADS[way])


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
@pytest.mark.parametrize("way", [Exact, FirstOrder, Recursion])
def test_adaptations(way: Callable[[], MetaGradient], adaptation: str, steps: int) -> None:
    module = MODULES["running batch norm"]().double()
    compare(module, tasks(3), way, ADAPTATIONS[adaptation](steps))


@pytest.mark.parametrize("way", [Exact, FirstOrder, Recursion, metagrad.GSL])
def test_without_inner_steps(way: Callable[[], MetaGradient]) -> None:
    compare(mlp().double(), tasks(3), way, SGD(0.3, 0))


def test_the_correction_needs_inner_steps() -> None:
    options = {"inner_steps": 0, "variant": "correction", "engine": "batched"}
    learner = GSL(mlp(), F.cross_entropy, inner_lr=0.2, **options)
    with pytest.raises(ValueError, match="took no step"):
        learner.step(tasks(2, torch.float32))


@pytest.mark.parametrize("network", MODULES)
def test_one_task(network: str) -> None:
    compare(MODULES[network]().double(), tasks(1))


def test_one_example() -> None:
    batch = tasks(3)
    few = TaskBatch(batch.support_x[:, :1], batch.support_y[:, :1], batch.query_x, batch.query_y)
    compare(mlp().double(), few)


def weighted(output: Tensor, target: Tensor) -> Tensor:
    """A loss whose mean is over a different number of examples in every task."""
    share = torch.tensor([1.0, 2.0, 5.0], dtype=output.dtype)
    return F.cross_entropy(output, target, share, ignore_index=1)


def test_custom_loss() -> None:
    batch = tasks(4)
    order = torch.rand(batch.query_y.shape).argsort(1)
    uneven = batch.query_y.gather(1, order).clamp(max=1)
    batch = TaskBatch(batch.support_x, batch.support_y, batch.query_x, uneven)
    compare(mlp().double(), batch, loss=weighted, aggregation=GradientAgreement)


def test_training_is_the_same() -> None:
    batches = [tasks(count) for count in (4, 2, 7, 1)]
    ends = []
    for engines in (["loop"], ["batched"], ["batched", "loop"]):
        torch.manual_seed(3)
        learner = GSL(
            MODULES["running batch norm"]().double(), F.cross_entropy, inner_lr=0.2, inner_steps=2
        )
        for i, batch in enumerate(batches):
            learner.engine = engines[i % len(engines)]
            learner.step(batch)
        ends.append(torch.cat([v.double().flatten() for v in learner.module.state_dict().values()]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-8, atol=1e-8)


def test_auto_does_not_select_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchedEngine, "run", None)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.LayerNorm(4), nn.Linear(4, WAYS))
    for network in (module, mlp()):
        FOMAML(network, F.cross_entropy, inner_lr=0.2).step(tasks(2, torch.float32))


class OwnSGD(SGD):
    """Clips the gradient of a whole parameter: stacked, it would clip that of all tasks."""

    def update(self, step: int, params: Any, grads: Any, state: Any) -> Any:
        return super().update(step, params, [g / (1 + g.norm()) for g in grads], state)


class Declared(SGD):
    task_batchable = True


class OwnExact(Exact):
    pass


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.register_buffer("graph", torch.eye(3).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


REFUSED: dict[str, tuple[nn.Module, Adaptation, MetaGradient, str]] = {
    "learned rates": (mlp(), MetaSGD(0.1), Exact(), "MetaSGD does not declare task_batchable"),
    "a subclass": (mlp(), OwnSGD(0.1), Exact(), "OwnSGD does not declare task_batchable = True"),
    "another meta-gradient": (
        mlp(),
        SGD(0.1),
        OwnExact(),
        "OwnExact does not declare task_batchable",
    ),
    "Implicit": (mlp(), SGD(0.1), metagrad.Implicit(), "Implicit does not declare task_batchable"),
    "a sparse buffer": (Sparse(), SGD(0.1), Exact(), "buffer graph is torch.sparse_coo"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    module, adaptation, way, reason = REFUSED[name]
    learner = MetaLearner(
        module,
        F.cross_entropy,
        adaptation=adaptation,
        metagrad=way,
        aggregation=Mean(),
        engine="batched",
    )
    with pytest.raises(ValueError, match=f"engine 'batched' cannot run this: .*{reason}.*'loop'"):
        learner.meta_gradient(tasks(2, torch.float32))


def test_learned_rates_are_refused_despite_declarations() -> None:
    class Rates(MetaSGD):
        task_batchable = True

    learner = MetaLearner(
        mlp(), F.cross_entropy, adaptation=Rates(0.1), metagrad=Exact(), aggregation=Mean(),
        engine="batched",
    )  # fmt: skip
    with pytest.raises(ValueError, match="Rates learns rates, whose gradients would be summed"):
        learner.step(tasks(2, torch.float32))


def test_a_subclass_can_declare_support() -> None:
    compare(mlp().double(), tasks(2), adaptation=Declared(0.3, 2))


class Calls(nn.Module):
    """A network with a function applied to its output."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = mlp()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x))


IMPOSSIBLE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "dropout": (nn.Dropout(0.5), "draws random numbers, such as dropout"),
    "noise": (lambda x: x + torch.randn(()), "draws random numbers"),
    "Python's generator": (lambda x: x * random.random(), "Python's or NumPy's generator was used"),
    "NumPy's generator": (lambda x: x * np.random.rand(), "Python's or NumPy's generator was used"),
    "a branch on values": (lambda x: x if x.sum() > 0 else -x, "data-dependent control flow"),
    "a number read": (lambda x: x * x.sum().item(), "calling .item()"),
    "an LSTM": (lambda x: nn.LSTM(WAYS, WAYS)(x)[0], "(random numbers|Batching rule|vmap)"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_unsupported_under_vmap(name: str) -> None:
    change, reason = IMPOSSIBLE[name]
    module = Calls(change)
    learner = MAML(module, F.cross_entropy, inner_lr=0.2, engine="batched")
    match = f"(?s)engine 'batched' cannot run.*{reason}.*Use engine='loop'"
    with pytest.raises(NotImplementedError, match=match):
        learner.step(tasks(2, torch.float32))
    learner.engine = "loop"
    learner.step(tasks(2, torch.float32))


def test_buffers_are_unchanged_after_a_failure() -> None:
    module = nn.Sequential(MODULES["running batch norm"](), nn.Dropout(0.5))
    before = [b.clone() for b in module.buffers()]
    with pytest.raises(NotImplementedError):
        MAML(module, F.cross_entropy, inner_lr=0.2, engine="batched").step(tasks(2, torch.float32))
    assert all(map(torch.equal, before, module.buffers()))


def test_a_cumulative_average_is_refused() -> None:
    module = MODULES["running batch norm"]()
    module[1].momentum = None  # torch reads the number of batches as a Python number
    with pytest.raises(NotImplementedError, match=r"Use engine='loop'"):
        MAML(module, F.cross_entropy, inner_lr=0.2, engine="batched").step(tasks(2, torch.float32))


def test_user_errors_propagate() -> None:
    with pytest.raises(RuntimeError, match=r"shapes|size") as caught:
        MAML(nn.Linear(7, 3), F.cross_entropy, inner_lr=0.2, engine="batched").step(tasks(2))
    assert "engine" not in str(caught.value)


def test_a_loss_that_is_not_a_scalar() -> None:
    loss = nn.CrossEntropyLoss(reduction="none")
    with pytest.raises(ValueError, match=r"the loss must be a scalar, got shape \(6,\)"):
        MAML(mlp(), loss, inner_lr=0.2, engine="batched").step(tasks(2, torch.float32))
