"""The MLP engine is selected only for modules that it computes exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import fastmeta
from fastmeta import FOMAML, MAML, MetaLearner, Reptile, TaskBatch, metagrad
from fastmeta.adaptation import SGD
from fastmeta.engines import LoopEngine, MlpEngine
from fastmeta.models import MLP
from tests.engines.mlp_cases import both, mlp
from tests.helpers.problems import WAYS, Tied, convolution, frozen, loss, tasks


def engine_of(learner: MetaLearner, batch: TaskBatch) -> str:
    """The engine that ``auto`` selects."""
    ran = []
    runs = {kind: kind.run for kind in (LoopEngine, MlpEngine)}

    def seen(kind: type) -> Callable[..., Any]:
        def run(self: Any, *args: Any) -> Any:
            ran.append(kind.name)
            return runs[kind](self, *args)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for kind in runs:
            patch.setattr(kind, "run", seen(kind))
        learner.meta_gradient(batch)
    assert len(ran) == 1
    return ran[0]


ACCEPTED: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: mlp(nn.ReLU),
    "tanh": mlp,
    "elu": lambda: mlp(nn.ELU),
    "silu": lambda: mlp(nn.SiLU),
    "sigmoid": lambda: mlp(nn.Sigmoid),
    "gelu": lambda: mlp(nn.GELU),
    "in place": lambda: mlp(lambda: nn.ReLU(inplace=True)),
    "fastmeta.models.MLP": lambda: MLP(16, WAYS, (5, 4)),
    "no hidden layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, WAYS)),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8)), nn.ReLU(), nn.Sequential(nn.Linear(8, WAYS))
    ),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, WAYS, bias=False)),
    "evaluation mode": lambda: mlp().eval(),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_recognised(name: str) -> None:
    module, batch = ACCEPTED[name]().double(), tasks(2)
    learner = MAML(module, F.cross_entropy, inner_lr=0.2)
    assert engine_of(learner, batch) == "mlp"
    both(MAML, module, F.cross_entropy, batch)


class OwnLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    module = mlp()
    module[1].register_forward_hook(lambda m, args, out: 2 * out)
    return module


def backward_hooked() -> nn.Module:
    module = mlp()
    module.register_full_backward_hook(lambda m, into, out: None)
    return module


def parametrized() -> nn.Module:
    module = mlp()
    nn.utils.parametrizations.weight_norm(module[1])
    return module


def pruned() -> nn.Module:
    module = mlp()
    prune.l1_unstructured(module[1], "weight", amount=0.5)
    return module


def patched() -> nn.Module:
    module = mlp()
    module[2].forward = torch.sin
    return module


def twice() -> nn.Module:
    square = nn.Linear(16, 16)
    return nn.Sequential(nn.Flatten(), square, nn.Tanh(), square, nn.Tanh(), nn.Linear(16, WAYS))


def gapped() -> nn.Module:
    module = mlp()
    module[1].weight = nn.Parameter(torch.randn(16, 8).t())
    return module


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a convolution": (lambda: convolution(False), "not a sequence of nn.Linear"),
    "another module": (Tied, "not a sequence of nn.Linear"),
    "a frozen parameter": (frozen, "does not train each parameter"),
    "a layer used twice": (twice, "does not train each parameter"),
    "a forward hook": (hooked, "a hook or custom forward is attached to Linear"),
    "a backward hook": (backward_hooked, "a hook or custom forward is attached to Sequential"),
    "a parametrization": (parametrized, "not a sequence of nn.Linear"),
    "a pruned layer": (pruned, "a hook or custom forward"),
    "another forward": (patched, "a hook or custom forward is attached to Tanh"),
    "a subclass": (
        lambda: nn.Sequential(nn.Flatten(), OwnLinear(16, WAYS)),
        "not a sequence of nn.Linear",
    ),
    "another activation": (lambda: mlp(nn.Softplus), "is not supported by the MLP kernel"),
    "another ELU": (lambda: mlp(lambda: nn.ELU(0.5)), "is not supported by the MLP kernel"),
    "another GELU": (
        lambda: mlp(lambda: nn.GELU("tanh")),
        "is not supported by the MLP kernel",
    ),
    "an activation at the end": (
        lambda: nn.Sequential(*mlp(), nn.Tanh()),
        "not a sequence of nn.Linear",
    ),
    "dropout": (
        lambda: nn.Sequential(*mlp(), nn.Dropout(0.0), nn.Linear(WAYS, WAYS)),
        "is not supported by the MLP kernel",
    ),
    "another flattening": (
        lambda: nn.Sequential(nn.Flatten(2), *mlp()),
        "not a sequence of nn.Linear",
    ),
    "a parameter with gaps": (gapped, "not a plain contiguous nn.Parameter"),
}


def check_refused(learner: MetaLearner, batch: TaskBatch, reason: str) -> None:
    assert engine_of(learner, batch) == "loop"
    learner.engine = "mlp"
    with pytest.raises(ValueError, match=f"engine 'mlp' cannot run this: .*{reason}.*loop"):
        learner.meta_gradient(batch)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", REFUSED)
def test_not_recognised(name: str) -> None:
    make, reason = REFUSED[name]
    check_refused(MAML(make().double(), F.cross_entropy, inner_lr=0.2), tasks(2), reason)


def test_other_components_and_losses_use_the_loop() -> None:
    batch = tasks(2, torch.float32)
    check_refused(Reptile(mlp(), F.cross_entropy, inner_lr=0.2), batch, "is Reptile")
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    check_refused(MAML(mlp(), smooth, inner_lr=0.2), batch, "but CrossEntropyLoss")

    class OwnSGD(SGD):
        pass

    class OwnGSL(metagrad.GSL):
        pass

    learner = MAML(mlp(), F.cross_entropy, inner_lr=0.2)
    check_refused(learner.with_components(adaptation=OwnSGD(0.2)), batch, "is OwnSGD, not SGD")
    check_refused(
        learner.with_components(metagrad=OwnGSL()), batch, "is OwnGSL; expected Exact, Recursion"
    )


def test_other_tensors_use_the_loop() -> None:
    batch = tasks(2, torch.bfloat16)
    half = MAML(mlp().bfloat16(), F.cross_entropy, inner_lr=0.2, check_precision=False)
    check_refused(half, batch, "parameters are torch.bfloat")
    narrow = nn.Sequential(nn.Linear(4, WAYS))  # takes rows of images, flattens nothing
    x, y = torch.randn(2, 6, 5, 4), torch.randn(2, 6, 5, WAYS)
    check_refused(
        MAML(narrow, F.mse_loss, inner_lr=0.2), TaskBatch(x, y, x, y), "support_x holds examples"
    )
    shares = torch.rand(2, 6, WAYS).softmax(-1)
    check_refused(
        MAML(narrow, F.cross_entropy, inner_lr=0.2),
        TaskBatch(x[:, :, 0], shares, x[:, :, 0], shares),
        "support_y is a Tensor of torch.float32",
    )


def test_autocast_uses_the_loop() -> None:
    learner = MAML(mlp(), F.cross_entropy, inner_lr=0.2, check_precision=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_refused(learner, tasks(2, torch.float32), "autocast is on")


def test_global_hooks_use_the_loop() -> None:
    learner = MAML(mlp(), F.cross_entropy, inner_lr=0.2)
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: None)
    try:
        check_refused(learner, tasks(2, torch.float32), "a global module hook")
    finally:
        handle.remove()


def test_a_changed_module_is_examined_again() -> None:
    learner, batch = MAML(mlp(), F.cross_entropy, inner_lr=0.2), tasks(2, torch.float32)
    assert engine_of(learner, batch) == "mlp"
    handle = learner.module[1].register_forward_hook(lambda m, args, out: None)
    assert engine_of(learner, batch) == "loop"
    handle.remove()
    assert engine_of(learner, batch) == "mlp"


def test_unknown_engine() -> None:
    with pytest.raises(
        ValueError, match="one of auto, loop, batched, mlp, sequence, compiled; got 'fast'"
    ):
        MAML(mlp(), F.cross_entropy, inner_lr=0.2, engine="fast")


def test_public_names() -> None:
    assert fastmeta.engines.ENGINES == ("auto", "loop", "batched", "mlp", "sequence", "compiled")


@pytest.mark.parametrize("options", [{"autocast": torch.bfloat16}, {"checkpoint": True}])
def test_the_mlp_engine_is_refused(options: dict) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, WAYS))
    learner = FOMAML(module, loss, inner_lr=0.1, engine="mlp", **options)
    with pytest.raises(ValueError, match=f"cannot run this: the learner has {next(iter(options))}"):
        learner.step(tasks(dtype=torch.float32))
