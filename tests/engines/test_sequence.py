"""The sequence engine matches the loop, and is selected only for networks that it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import FOMAML, MAML, MetaLearner, TaskBatch, metagrad
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.engines import LoopEngine, SequenceEngine
from fastmeta.models import Conv4
from fastmeta.tuning.memory import peak_bytes
from tests.engines.test_mlp import METHODS
from tests.helpers.recorded_graphs import sequence_step_as_on_cuda
from tests.helpers.reference_loops import LR, reference_meta_gradients

WAYS = 3


def images(tasks: int = 3, size: int = 8, dtype: torch.dtype = torch.float64) -> TaskBatch:
    def draw(each: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(WAYS).repeat(each).expand(tasks, -1).contiguous()
        return torch.randn(tasks, WAYS * each, 2, size, size, dtype=dtype), y

    return TaskBatch(*draw(2), *draw(3))


def block(inputs: int = 2, stride: int = 1, **options: Any) -> list[nn.Module]:
    norm = nn.BatchNorm2d(5, track_running_stats=options.pop("track", False), **options)
    return [nn.Conv2d(inputs, 5, 3, stride, padding=1), norm, nn.ReLU()]


def net(*layers: nn.Module, features: int = 320) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, WAYS))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "strided": lambda: Conv4(2, 8, WAYS, hidden=4, downsample="stride"),
    "pooled": lambda: Conv4(2, 8, WAYS, hidden=4),
    "features end before the last pooling": lambda: Conv4(2, 8, WAYS, hidden=4, pool_last=False),
    "warp layers": lambda: Conv4(2, 8, WAYS, hidden=4, warp=True),
    "running statistics": lambda: Conv4(2, 8, WAYS, hidden=4, batch_norm_stats=True),
    "a BatchNorm per step": lambda: Conv4(
        2, 8, WAYS, hidden=4, batch_norm_stats=True, batch_norm_steps=2
    ),
    "more BatchNorms than steps": lambda: Conv4(
        2, 8, WAYS, hidden=4, batch_norm_stats=True, batch_norm_steps=5
    ),
    "cumulative statistics": lambda: net(*block(track=True, momentum=None)),
    "no normalisation": lambda: net(
        nn.Conv2d(2, 4, 3, padding="same", bias=False), nn.GELU(), nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 5, 3, 2, padding=1), nn.LeakyReLU(0.2)), nn.AvgPool2d(2),
        features=5,
    ),
    "global mean": lambda: net(*block(), nn.Dropout(0.0), nn.AdaptiveAvgPool2d(1), features=5),
    "normalisation without ReLU": lambda: net(
        *block()[:2], nn.LeakyReLU(0.2), *block(5, track=True)[:2], nn.GELU(), *block(5, 2)[:2],
        nn.MaxPool2d(2), features=20,
    ),
    "hidden linear layer": lambda: net(*block(), nn.Flatten(), nn.Linear(320, 7), nn.Tanh(),
                                       nn.Identity(), features=7),
}  # fmt: skip


def both(
    make: Callable[..., MetaLearner], module: nn.Module, batch: TaskBatch, steps: int = 3
) -> None:
    """Gradients, results and buffers of both engines, each with a copy of the module."""
    seen = []
    for engine in ("loop", "sequence"):
        own = copy.deepcopy(module)
        learner = make(own, F.cross_entropy, inner_lr=0.2, inner_steps=steps, engine=engine)
        flat, result = learner.meta_gradient(batch)
        seen.append((*vars(result).values(), *own.buffers(), flat))
    (*_, expected), (*_, found) = seen
    assert (found - expected).norm() <= 1e-9 * expected.norm()
    for loop, sequence in zip(*(s[:-1] for s in seen), strict=True):
        torch.testing.assert_close(sequence, loop, rtol=1e-8, atol=1e-10)


@pytest.fixture(params=["one call", "as on CUDA"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one compiled call, or in launches and their replays."""
    if request.param == "as on CUDA":
        sequence_step_as_on_cuda(monkeypatch)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", [MAML, FOMAML])
def test_networks(method: Any, network: str) -> None:
    both(method, NETWORKS[network]().double(), images())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("method", METHODS)
def test_methods(method: str) -> None:
    both(METHODS[method], Conv4(2, 8, WAYS, hidden=4).double(), images(5))


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("steps", range(6))
def test_against_plain_autograd(steps: int, second_order: bool) -> None:
    module, batch = Conv4(2, 8, WAYS, hidden=4, downsample="stride").double(), images()
    method = MAML if second_order else FOMAML
    learner = method(module, F.cross_entropy, inner_lr=LR, inner_steps=steps, engine="sequence")
    expected = reference_meta_gradients(module, batch, steps, second_order).mean(0)
    found, _ = learner.meta_gradient(batch)
    assert (found - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("method", [MAML, FOMAML])
@pytest.mark.parametrize(("downsample", "channels"), [("pool", 3), ("pool", 1), ("stride", 1)])
def test_two_threads_need_no_more_memory_than_the_loop(
    downsample: Any, channels: int, method: Any
) -> None:
    """Although each has memory of its own, since the values of the lowest layers are not kept."""
    torch.set_num_threads(2)
    x, y = torch.randn(2, 30, channels, 32, 32), torch.arange(WAYS).repeat(10).expand(2, -1)
    batch = TaskBatch(x[:, :WAYS], y[:, :WAYS], x, y)
    peaks = {}
    for engine in ("loop", "sequence"):
        module = Conv4(channels, 32, WAYS, hidden=32, downsample=downsample)
        learner = method(module, F.cross_entropy, inner_lr=0.1, inner_steps=2, engine=engine)
        peaks[engine] = peak_bytes(partial(learner.meta_gradient, batch), torch.device("cpu"))
    assert peaks["sequence"] <= peaks["loop"], peaks


@pytest.mark.usefixtures("way")
def test_training_is_the_same() -> None:
    batches = [images(2) for _ in range(6)]
    ends = []
    for engine in ("loop", "sequence"):
        torch.manual_seed(3)
        module = NETWORKS["a BatchNorm per step"]().double()
        learner = MAML(module, F.cross_entropy, inner_lr=0.2, inner_steps=2, engine=engine)
        for batch in batches:
            learner.step(batch)
        ends.append(torch.cat([t.double().flatten() for t in module.state_dict().values()]))
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-7)


def selected(module: nn.Module, loss: Any = F.cross_entropy, **options: Any) -> type:
    learner = MAML(module, loss, inner_lr=0.2, **options)
    return type(learner._step.engines.select(images(dtype=torch.float32)))


def test_auto_selects_it() -> None:
    for network in NETWORKS.values():
        assert selected(network()) is SequenceEngine


def test_auto_does_not_select_it_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = MAML(net(*block()), F.cross_entropy, inner_lr=0.2)
    engines = learner._step.engines
    assert type(engines.select(images(dtype=torch.float32))) is SequenceEngine
    monkeypatch.setattr(learner._step.spec.model, "params", [SimpleNamespace(is_cuda=True)])
    assert type(engines.select(images(dtype=torch.float32))) is LoopEngine


def hooked() -> nn.Module:
    module = net(*block())
    module[1].register_forward_hook(lambda *args: None)
    return module


def frozen() -> nn.Module:
    module = net(*block())
    module[0].bias.requires_grad_(False)
    return module


def parametrized() -> nn.Module:
    module = net(*block())
    nn.utils.parametrizations.weight_norm(module[0])
    return module


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "a hook": (hooked, {}, "hook or custom forward is attached to BatchNorm2d"),
    "a frozen parameter": (frozen, {}, "does not train all parameters of Conv2d"),
    "a parametrization": (parametrized, {}, "is not supported"),
    "5x5": (lambda: net(nn.Conv2d(2, 5, 5, padding=2)), {}, r"Conv2d\(2, 5.* is not supported"),
    "evaluation mode": (
        lambda: net(*block(track=True)).eval(),
        {},
        "does not use batch statistics",
    ),
    "dropout": (lambda: net(*block(), nn.Dropout(0.5)), {}, "Dropout.* is not supported"),
    "no flattening": (lambda: nn.Sequential(*block(), nn.Linear(8, 3)), {}, "not flattened"),
    "no head": (lambda: nn.Sequential(*block(), nn.Flatten()), {}, "does not end with nn.Linear"),
    "no convolution": (lambda: net(nn.ReLU(), features=128), {}, "no convolution"),
    "another loss": (lambda: net(*block()), {"loss": nn.CrossEntropyLoss()}, "the loss is neither"),
    "fuse=False": (lambda: net(*block()), {"fuse": False}, "fuse=False"),
    "checkpointing": (lambda: net(*block()), {"checkpoint": True}, "checkpoint=True"),
    "autocast": (lambda: net(*block()), {"autocast": torch.bfloat16}, "autocast"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, options, reason = REFUSED[name]
    options = {"loss": F.cross_entropy, **options}
    learner = FOMAML(make(), inner_lr=0.2, engine="sequence", **options)
    batch = images(dtype=torch.float32)
    with pytest.raises(ValueError, match=f"(?s)engine 'sequence' cannot run this: .*({reason})"):
        learner.meta_gradient(batch)
    learner.engine = "auto"
    assert type(learner._step.engines.select(batch)) is LoopEngine


def test_other_components_are_refused() -> None:
    for adaptation, way in (
        (SGD(0.1, momentum=0.5), metagrad.Exact()),
        (SGD(0.1), metagrad.Implicit()),
    ):
        learner = MetaLearner(
            net(*block()), F.cross_entropy, adaptation=adaptation, metagrad=way, aggregation=Mean(),
            engine="sequence",
        )  # fmt: skip
        with pytest.raises(ValueError, match="engine 'sequence' cannot run this: "):
            learner.meta_gradient(images(dtype=torch.float32))


class Own(nn.Module):
    """A network as users write it: blocks of their own, functions and methods."""

    def __init__(self, flatten: str = "view", pool: bool = True) -> None:
        super().__init__()
        self.first = nn.Sequential(*block())
        self.second = nn.Conv2d(5, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5 if flatten == "mean" else 80 if pool else 320, WAYS)
        self.how, self.pool, self.calls = flatten, pool, 0

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        x = F.relu(self.norm(self.second(self.first(x))))
        if self.pool:
            x = F.max_pool2d(x, 2)
        if self.how == "view":
            x = x.view(x.size(0), -1)
        elif self.how == "width":
            x = x.reshape(-1, self.head.in_features)
        elif self.how == "shape":
            x = F.leaky_relu(x.reshape(x.shape[0], -1), 0.2)
        elif self.how == "flatten":
            x = torch.flatten(x, 1)
        else:
            x = x.mean(dim=(2, 3))
        return self.head(x)


@pytest.mark.parametrize("flatten", ["view", "width", "shape", "flatten", "mean"])
def test_own_modules_are_traced(flatten: str) -> None:
    both(MAML, Own(flatten).double(), images())
    learner = MAML(Own(flatten).double(), F.cross_entropy, inner_lr=0.2)
    engine = learner._current().engines.select(images())
    assert isinstance(engine, SequenceEngine)


def test_changed_modules_are_traced_anew() -> None:
    module, batch = Own("flatten").double(), images()
    learner = MAML(module, F.cross_entropy, inner_lr=0.2, engine="sequence")
    before, _ = learner.meta_gradient(batch)
    module.how = "shape"  # with a leaky ReLU
    module.second.weight.data.neg_()
    found, _ = learner.meta_gradient(batch)
    assert not torch.allclose(found, before)
    learner.engine = "loop"
    expected, _ = learner.meta_gradient(batch)
    assert (found - expected).norm() <= 1e-9 * expected.norm()


def test_hooks_are_not_skipped_after_the_trace() -> None:
    module, batch = Own().double(), images()
    learner = MAML(module, F.cross_entropy, inner_lr=0.2)
    learner.meta_gradient(batch)
    calls: list[object] = []
    module.first.register_forward_hook(lambda *args: calls.append(args))
    learner.meta_gradient(batch)
    assert calls


class Residual(Own):
    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        x = self.first(x)
        return self.head((x + self.second(x)).flatten(1))


class Branching(Own):
    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        x = self.first(x)
        return self.head(x.flatten(1)) if x.sum() > 0 else self.head(-x.flatten(1))


class Counting(Own):
    """Computes something else at every call."""

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        self.calls += 1
        x = self.first(x)
        if self.calls % 2:
            x = F.relu(self.second(x))
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Residual(pool=False), "not a chain of layers"),
        (Branching(pool=False), "cannot trace"),
        (Counting(pool=False), "computes something else"),
    ],
)
def test_other_modules_are_refused(module: nn.Module, reason: str) -> None:
    learner = MAML(module.double(), F.cross_entropy, inner_lr=0.2, engine="sequence")
    with pytest.raises(ValueError, match=reason):
        learner.meta_gradient(images())
