"""The compiled engine matches the loop, or explains why it cannot run."""

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

from fastmeta import MAML, CoLearner, MetaLearner, RaggedTaskBatch, TaskBatch, metagrad
from fastmeta.adaptation import SGD, Adam, Adaptation, Clipped, Groups, LayerPattern, MetaSGD
from fastmeta.aggregation import GradientAgreement, Mean
from fastmeta.engines import CompiledEngine, _regions, compiled
from fastmeta.metagrad import Exact, MetaGradient
from tests.engines.test_against_autograd import NETWORKS as DEEP
from tests.engines.test_against_autograd import batch_for
from tests.helpers.problems import MODULES, WAYS, Drifting, mlp, tasks


@pytest.fixture(autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traced graphs run as they are, but in tests with the fixture `inductor`."""
    if "inductor" not in request.fixturenames:
        monkeypatch.setattr(CompiledEngine, "_compile_region", lambda _, region, alone: region)


@pytest.fixture
def inductor() -> None:
    """Compiles them."""


def compare(
    module: nn.Module,
    batch: TaskBatch,
    metagrad: Callable[[], MetaGradient] = Exact,
    adaptation: Callable[[], Adaptation] = lambda: SGD(0.3, 2),
    loss: Any = F.cross_entropy,
    aggregation: Any = Mean,
    steps: int = 1,
    **options: Any,
) -> None:
    """Compares gradient, task gradients, results and buffers with those of the loop engine."""
    seen = []
    for engine in ("loop", "compiled"):
        own = copy.deepcopy(module)
        learner = MetaLearner(
            own,
            loss,
            adaptation=adaptation(),
            metagrad=metagrad(),
            aggregation=aggregation(),
            engine=engine,
            **options,
        )
        for _ in range(steps - 1):
            learner.step(batch)
        flat, result = learner.meta_gradient(batch)
        assert len(learner.compilations) == (engine == "compiled")
        buffers = learner._step.buffers
        parts = [b.filled.clone() for b in (buffers.outer, buffers.support)]
        seen.append((*parts, *vars(result).values(), *own.buffers(), flat))
    assert seen[0][-1].norm() > 0
    for loop, own in zip(*seen, strict=True):
        assert not own.requires_grad
        torch.testing.assert_close(own, loop, rtol=1e-9, atol=1e-11)


SHALLOW: dict[str, Callable[[], nn.Module]] = {
    **MODULES,
    "a buffer that drifts": Drifting,
    "evaluation mode": lambda: MODULES["running batch norm"]().eval(),
    "dropout that rests": lambda: nn.Sequential(mlp(), nn.Dropout(0.5)).eval(),
    "an LSTM": lambda: Recurrent(),
}

METAGRADS: dict[str, Callable[[], MetaGradient]] = {
    "first order": metagrad.FirstOrder,
    "mixed order": lambda: Exact(layers="head"),
    "gsl": metagrad.GSL,
    "gsl, cosine": lambda: metagrad.GSL(lam_c=0.5, lam_2=0.1),
    "gsl R1": metagrad.GSLCorrection,
    "recursion": metagrad.Recursion,
    "recursion, forward": lambda: metagrad.Recursion("forward"),
    # The default radius magnifies rounding errors.
    "central difference": lambda: metagrad.CentralDifference(radius=1e-3),
    "implicit": metagrad.Implicit,
    "reptile": metagrad.Reptile,
}

ADAPTATIONS: dict[str, Callable[[], Adaptation]] = {
    "momentum": lambda: SGD(0.2, 3, momentum=0.8, nesterov=True, weight_decay=0.1),
    "a learned rate": lambda: SGD(nn.Parameter(torch.tensor(0.2, dtype=torch.float64)), 2),
    "adam": lambda: Adam(0.05, 2, eps=1e-3),
    "meta-sgd": lambda: MetaSGD(0.2, 2, per_step=True),
    "clipped": lambda: Clipped(SGD(0.3, 2), 0.1),
    "groups": lambda: Groups({"*.bias": SGD(0.1, 2), "*": Adam(0.05, 2, eps=1e-3)}),
    "pattern": lambda: LayerPattern(SGD(0.2, 2), "01/11"),
}


class Recurrent(nn.Module):
    """The last state of an LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x[:, 0])[0][:, -1])


@pytest.mark.parametrize("network", SHALLOW)
def test_networks(network: str) -> None:
    compare(SHALLOW[network]().double(), tasks(2))


@pytest.mark.parametrize("network", DEEP)
def test_against_autograd(network: str) -> None:
    loss = F.mse_loss if network == "sine MLP" else F.cross_entropy
    compare(DEEP[network]().double(), batch_for(network), loss=loss, fuse=False)


@pytest.mark.parametrize("way", METAGRADS)
def test_meta_gradients(way: str) -> None:
    compare(mlp().double(), tasks(2), METAGRADS[way])


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_adaptations(adaptation: str) -> None:
    # Several meta-steps: learned rates are inputs, not constants.
    compare(mlp().double(), tasks(2), adaptation=ADAPTATIONS[adaptation], steps=3)


def test_frozen_parameters_and_co_learner() -> None:
    module = nn.Sequential(mlp(), nn.Tanh(), nn.Linear(WAYS, WAYS)).double()
    module[2].weight.requires_grad_(False)
    head = nn.Linear(WAYS, WAYS).double()
    co_learner = CoLearner(head, "1", 0.3)
    compare(module, tasks(2), aggregation=GradientAgreement, co_learner=co_learner)


def test_autocast_and_inputs_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, *, image: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(image) * scale}

    def loss(output: dict[str, Tensor], y: None) -> Tensor:
        return output["logits"].float().square().mean()

    x = {"image": torch.randn(2, 6, 4, 4), "scale": torch.rand(2, 6, 1)}
    options = {"inner_lr": 0.1, "autocast": torch.bfloat16, "fuse": False}
    learners = [
        MAML(Named(), loss, engine=engine, check_precision=False, **options)
        for engine in ("loop", "compiled")
    ]
    learners[1].module.load_state_dict(learners[0].module.state_dict())
    expected, found = (
        learner.meta_gradient(TaskBatch(x, None, x, None))[0] for learner in learners
    )
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


class Blocks(nn.Module):
    """Residual blocks, as many as wanted."""

    def __init__(self, count: int) -> None:
        super().__init__()
        block = lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))  # noqa: E731
        self.first = nn.Linear(16, 6)
        self.blocks = nn.ModuleList([block() for _ in range(count)])
        self.head = nn.Linear(6, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_repeated_blocks_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_regions, "SMALL_GRAPH", 50)
    monkeypatch.setattr(_regions, "MIN_SAVED", 30)
    distinct = []
    for count in (4, 8):
        learners = [
            MAML(Blocks(count).double(), F.cross_entropy, inner_lr=0.1, engine=e)
            for e in ("loop", "compiled")
        ]
        learners[1].module.load_state_dict(learners[0].module.state_dict())
        batch = tasks(2)
        expected, found = (learner.meta_gradient(batch)[0] for learner in learners)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        (compilation,) = learners[1].compilations
        assert compilation.regions > 6
        distinct.append(compilation.distinct)
        assert compilation.distinct < compilation.operations / 1.5
    assert distinct[1] < 1.5 * distinct[0]


def test_compiled_by_inductor(inductor: None, capsys: pytest.CaptureFixture[str]) -> None:
    compare(mlp().double(), tasks(2), steps=2)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("fastmeta: compiling the meta-step ... ")


def test_what_is_compiled_anew_and_why() -> None:
    module = nn.Sequential(mlp(), nn.Dropout(0.5)).eval()
    learner = MAML(module, F.cross_entropy, inner_lr=0.1, engine="compiled")
    few, many = tasks(2, torch.float32), tasks(3, torch.float32)

    def step(batch: TaskBatch) -> Tensor:
        return learner.meta_gradient(batch)[0].clone()

    first, _ = step(few), step(few)
    assert len(learner.compilations) == 1
    assert not learner.compilations[0].reason
    step(many)
    reason = learner.compilations[1].reason
    assert reason.startswith("support_x: (2, 6, 1, 4, 4) (torch.float32, stride (96, ")
    assert " -> (3, 6, 1, 4, 4) (torch.float32, " in reason
    learner.adaptation.lr = 0.5
    changed = step(few)
    assert learner.compilations[2].reason == "adaptation.lr: 0.1 -> 0.5"
    assert not torch.allclose(changed, first)
    expected = MAML(module, F.cross_entropy, inner_lr=0.5, engine="loop").meta_gradient(few)[0]
    torch.testing.assert_close(changed, expected)
    learner.adaptation.lr = 0.1
    assert torch.equal(step(few), first)  # found again
    assert len(learner.compilations) == 3
    module[0][1].weight.requires_grad_(False)
    assert len(step(few)) < len(first)  # another set of parameters
    assert len(learner.compilations) == 1


def test_precision_set_for_each_backend() -> None:
    # After which torch.get_float32_matmul_precision raises in torch 2.13.
    learner = MAML(mlp(), F.cross_entropy, inner_lr=0.1, engine="compiled")
    products, before = torch.backends.mkldnn.matmul, torch.backends.mkldnn.matmul.fp32_precision
    learner.meta_gradient(tasks(2, torch.float32))
    try:
        products.fp32_precision = "bf16"
        learner.meta_gradient(tasks(2, torch.float32))
    finally:
        products.fp32_precision = before
    assert learner.compilations[1].reason.startswith("matmul precision: ")


def test_the_number_of_tasks_does_not_matter_to_large_networks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "MAX_STACKED", 0)
    learner = MAML(mlp().double(), F.cross_entropy, inner_lr=0.1, engine="compiled")
    for batch in (tasks(2), tasks(3)):
        found = learner.meta_gradient(batch)[0].clone()
        expected = MAML(learner.module, F.cross_entropy, inner_lr=0.1).meta_gradient(batch)[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert len(learner.compilations) == 1


def test_new_values_of_parameters_and_buffers_are_used() -> None:
    module = MODULES["running batch norm"]().double().eval()
    learner = MAML(module, F.cross_entropy, inner_lr=0.1, engine="compiled")
    batch = tasks(2)
    learner.meta_gradient(batch)
    module[1].running_mean.add_(0.5)
    module[4].bias.data.mul_(2)
    found = learner.meta_gradient(batch)[0].clone()
    learner.engine = "loop"
    torch.testing.assert_close(found, learner.meta_gradient(batch)[0])


def test_many_compilations_warn() -> None:
    learner = MAML(nn.Linear(3, 1), F.mse_loss, inner_lr=0.1, engine="compiled")

    def step(count: int) -> None:
        x, y = torch.randn(1, count, 3), torch.randn(1, count, 1)
        learner.step(TaskBatch(x, y, x, y))

    for count in range(1, 8):
        step(count)
    with pytest.warns(RuntimeWarning, match="compiled 8 times, last because of support_x: "):
        step(8)
    step(9)


class Calls(nn.Module):
    """A network with a function applied to its output."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = mlp()
        self.change = change
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x))


class Counting(Calls):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


IMPOSSIBLE: dict[str, tuple[nn.Module, str]] = {
    "dropout": (Calls(nn.Dropout(0.5)), "draws random numbers, such as dropout"),
    "noise": (Calls(lambda x: x + torch.randn(())), "draws random numbers"),
    "Python's generator": (Calls(lambda x: x * random.random()), "Python's or NumPy's generator"),
    "NumPy's generator": (Calls(lambda x: x * np.random.rand()), "Python's or NumPy's generator"),
    "a branch on values": (Calls(lambda x: x if x.sum() > 0 else -x), "depends on the values"),
    "a number read": (Calls(lambda x: x * x.sum().item()), "depends on the values"),
    "NumPy": (Calls(lambda x: x * torch.from_numpy(x.detach().numpy())), "depends on the values"),
    "a counter": (Counting(nn.Identity()), r"changes its attributes in each call: module\.calls"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_traced(name: str) -> None:
    module, reason = IMPOSSIBLE[name]
    learner = MAML(module, F.cross_entropy, inner_lr=0.2, engine="compiled")
    match = f"(?s)engine 'compiled' cannot run.*{reason}.*Use engine='loop'"
    with pytest.raises(NotImplementedError, match=match):
        learner.step(tasks(2, torch.float32))
    learner.engine = "loop"
    learner.step(tasks(2, torch.float32))


@pytest.mark.parametrize("way", [metagrad.MultiStep, lambda: metagrad.GSL(schedule="linear:9")])
def test_meta_gradients_that_depend_on_the_meta_step(way: Callable[[], MetaGradient]) -> None:
    learner = MetaLearner(
        mlp(), F.cross_entropy, adaptation=SGD(0.1, 2), metagrad=way(), aggregation=Mean(),
        engine="compiled",
    )  # fmt: skip
    with pytest.raises(NotImplementedError, match="depends on the number of the meta-step"):
        learner.step(tasks(2, torch.float32))


def hooked() -> nn.Module:
    module = mlp()
    module[1].register_forward_hook(lambda *_: None)
    return module


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.register_buffer("graph", torch.eye(3).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "a hook": (hooked, {}, "a hook is registered on 1"),
    "checkpointing": (mlp, {"checkpoint": True}, "the learner has checkpoint"),
    "a sparse buffer": (Sparse, {}, "buffer graph is torch.sparse_coo"),
    "a compiled part": (
        lambda: nn.Sequential(torch.compile(mlp())),
        {},
        "part of the network is compiled already",
    ),
    "a state": (mlp, {"metagrad": metagrad.CalibratedGSL()}, "CalibratedGSL keeps a state"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, options, reason = REFUSED[name]
    components = {"adaptation": SGD(0.1), "metagrad": Exact(), "aggregation": Mean(), **options}
    learner = MetaLearner(make(), F.cross_entropy, engine="compiled", **components)
    with pytest.raises(ValueError, match=f"engine 'compiled' cannot run this: .*{reason}.*'loop'"):
        learner.check(tasks(2, torch.float32))


def test_ragged_tasks_are_refused() -> None:
    learner = MAML(mlp(), F.cross_entropy, inner_lr=0.2, engine="compiled")
    with pytest.raises(ValueError, match="RaggedTaskBatch"):
        learner.step(RaggedTaskBatch(list(tasks(2, torch.float32))))


def test_user_errors_propagate() -> None:
    with pytest.raises(RuntimeError, match=r"dim|shapes") as caught:
        MAML(nn.Linear(7, 3), F.cross_entropy, inner_lr=0.2, engine="compiled").step(tasks(2))
    assert "engine" not in str(caught.value)
