"""GSL with the head's support gradient in closed form against autograd, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import MetaLearner, TaskBatch, ops
from fastmeta.adaptation import SGD, Adam, LayerPattern, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.functional import FunctionalModule
from fastmeta.metagrad import GSL
from fastmeta.models import Conv4

Loss = Callable[[Tensor, Tensor], Tensor]
COSINE = {"lam_d": 0.6, "lam_c": 0.7}


def batch(*inputs: int, ways: int = 3) -> TaskBatch:
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(2, n, *inputs, generator=generator, dtype=torch.float64)
        return x, torch.randint(ways, (2, n), generator=generator)

    return TaskBatch(*split(4), *split(5))


def gradient(module: nn.Module, tasks: TaskBatch, loss: Loss, **options: Any) -> Tensor:
    inner = options.pop("inner", None) or SGD(0.3, 2)
    learner = MetaLearner(
        copy.deepcopy(module),
        loss,
        adaptation=copy.deepcopy(inner),
        metagrad=GSL(0.8, **options.pop("gsl", {})),
        aggregation=Mean(),
        **{"engine": "loop", **options},
    )
    return learner.meta_gradient(tasks)[0]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tasks in each call of the op."""
    seen: list[int] = []
    op = ops.head_similarity

    def spy(features: Tensor, *args: Any, **options: Any) -> Any:
        seen.append(len(features))
        return op(features, *args, **options)

    monkeypatch.setattr(ops, "head_similarity", spy)
    return seen


def by_autograd(*args: Any, **options: Any) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FunctionalModule, "find_head", lambda _: None)
        return gradient(*args, **options)


def check(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def mlp(bias: bool = True) -> nn.Sequential:
    layers = (nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=bias))
    return nn.Sequential(*layers).double()


def frozen_bias() -> nn.Module:
    module = mlp()
    module[-1].bias.requires_grad_(False)
    return module


def squared(output: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(output, F.one_hot(y, 3).to(output))


NETWORKS = {
    "bias": mlp,
    "no bias": lambda: mlp(bias=False),
    "frozen bias": frozen_bias,
    "a single layer": lambda: nn.Linear(6, 3).double(),
}


@pytest.mark.parametrize(
    ("engine", "gsl"),
    [("loop", {}), ("batched", {}), ("loop", COSINE)],
    ids=["loop", "batched", "cosine"],
)
@pytest.mark.parametrize("network", NETWORKS)
def test_networks(calls: list[int], network: str, gsl: dict[str, float], engine: str) -> None:
    module, tasks = NETWORKS[network](), batch(6)
    found = gradient(module, tasks, F.cross_entropy, gsl=gsl, engine=engine)
    assert calls == ([2] * 2 if engine == "batched" else [1] * 4)
    check(found, by_autograd(module, tasks, F.cross_entropy, gsl=gsl))


def test_regression(calls: list[int]) -> None:
    tasks = batch(6)
    y = [F.one_hot(t, 3).double() for t in (tasks.support_y, tasks.query_y)]
    tasks = TaskBatch(tasks.support_x, y[0], tasks.query_x, y[1])
    module = mlp()
    found = gradient(module, tasks, F.mse_loss, gsl=COSINE)
    assert len(calls) == 4
    check(found, by_autograd(module, tasks, F.mse_loss, gsl=COSINE))


def test_ignored_targets(calls: list[int]) -> None:
    module, tasks = mlp(), batch(6)
    tasks.support_y[0, 1] = -100
    found = gradient(module, tasks, F.cross_entropy, gsl=COSINE)
    assert len(calls) == 4
    check(found, by_autograd(module, tasks, F.cross_entropy, gsl=COSINE))


@pytest.mark.parametrize("graphs", [None, 1, 0])
@pytest.mark.parametrize(
    "inner",
    [
        SGD(0.3, 3, momentum=0.9),
        Adam(0.01, 2, eps=0.01),
        MetaSGD(0.3, 2),
        LayerPattern(SGD(0.3, 3), "body/head/full"),
        LayerPattern(SGD(0.3, 2), "head"),
    ],
    ids=["momentum", "adam", "learned rates", "lambda", "anil"],
)
def test_inner_loops(calls: list[int], inner: Any, graphs: int | None) -> None:
    module, tasks, gsl = mlp(), batch(6), {**COSINE, "graphs": graphs}
    found = gradient(module, tasks, F.cross_entropy, inner=inner, gsl=gsl)
    assert calls
    check(found, by_autograd(module, tasks, F.cross_entropy, inner=inner, gsl=gsl))


@pytest.mark.parametrize("graphs", [None, 0])
@pytest.mark.parametrize("fuse", [True, False])
def test_conv4(calls: list[int], fuse: bool, graphs: int | None) -> None:
    torch.manual_seed(0)
    module, tasks = Conv4(1, 16, 3, hidden=4).double(), batch(1, 16, 16)
    options = {"gsl": {"graphs": graphs}, "fuse": fuse}
    found = gradient(module, tasks, F.cross_entropy, **options)
    assert len(calls) == 4
    check(found, by_autograd(module, tasks, F.cross_entropy, **options))


class Scaled(nn.Module):
    """A network whose outputs are not those of its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.head(self.body(x).tanh())


class Twice(Scaled):
    """A network that runs its last layer twice."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).tanh()
        return self.head(features + 0.1 * self.head(features).sum(1, keepdim=True))


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    module[2].weight = module[0].weight
    return module


def hooked() -> nn.Module:
    module = mlp()
    module[-1].register_forward_hook(lambda _module, _inputs, output: 2 * output)
    return module


OTHERS = {"scaled": Scaled, "twice": Twice, "tied": tied, "hooked": hooked}


@pytest.mark.parametrize("network", OTHERS)
@pytest.mark.parametrize("graphs", [None, 0])
def test_networks_without_closed_form(calls: list[int], network: str, graphs: int | None) -> None:
    module, tasks, gsl = OTHERS[network](), batch(6), {**COSINE, "graphs": graphs}
    found = gradient(module, tasks, F.cross_entropy, gsl=gsl)
    assert not calls
    check(found, by_autograd(module, tasks, F.cross_entropy, gsl=gsl))


def test_losses_without_closed_form(calls: list[int]) -> None:
    module, tasks = mlp(), batch(6)
    soft = [F.one_hot(y, 3).double() for y in (tasks.support_y, tasks.query_y)]
    probabilities = TaskBatch(tasks.support_x, soft[0], tasks.query_x, soft[1])
    for loss, given in ((squared, tasks), (F.cross_entropy, probabilities)):
        found = gradient(module, given, loss)
        check(found, by_autograd(module, given, loss))
    assert not calls


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_broadcast_regression_targets(calls: list[int]) -> None:
    module, tasks = mlp(), batch(6)
    y = [t.double().unsqueeze(-1) for t in (tasks.support_y, tasks.query_y)]
    broadcast = TaskBatch(tasks.support_x, y[0], tasks.query_x, y[1])
    found = gradient(module, broadcast, F.mse_loss)
    assert not calls
    check(found, by_autograd(module, broadcast, F.mse_loss))


@pytest.mark.parametrize("options", [{"checkpoint": True}, {"autocast": torch.bfloat16}], ids=str)
def test_options_of_the_learner(calls: list[int], options: dict[str, Any]) -> None:
    module, tasks = mlp().float(), batch(6)
    tasks = TaskBatch(
        tasks.support_x.float(), tasks.support_y, tasks.query_x.float(), tasks.query_y
    )
    found = gradient(module, tasks, F.cross_entropy, **options)
    assert len(calls) == 4
    expected = by_autograd(module, tasks, F.cross_entropy, **options)
    tolerance = 2e-2 if "autocast" in options else 1e-5
    assert (found - expected).norm() < tolerance * expected.norm()
