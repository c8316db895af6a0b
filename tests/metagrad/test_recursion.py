"""The reverse sweep over the inner steps against backpropagation through all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adam, Adaptation, MetaSGD, ProximalSGD
from fastmeta.aggregation import GradientAgreement, Mean
from fastmeta.metagrad import Exact, MetaGradient, Recursion
from tests.helpers.problems import MODULES, WAYS, Drifting, Noisy, loss, mlp, tasks
from tests.metagrad.autograd_memory import peak_saved_bytes

TOLERANCE = 1e-9  # relative, float64

ADAPTATIONS: dict[str, Callable[[int], Adaptation]] = {
    "sgd": lambda steps: SGD(0.3, steps),
    "momentum": lambda steps: SGD(0.2, steps, momentum=0.8),
    # A bias before BatchNorm has a gradient of pure rounding error: eps must be far above it.
    "adam": lambda steps: Adam(0.05, steps, eps=1e-3),
    "learned rates": lambda steps: MetaSGD(0.3, steps),
    "learned rate a tensor": lambda steps: MetaSGD(0.3, steps, per="tensor"),
    "learned rates a step": lambda steps: MetaSGD(0.3, steps, per="tensor", per_step=True),
    "proximal": lambda steps: ProximalSGD(0.3, steps, lam=0.8),
}

RECURSIONS = [{"hvp": "reverse", "graphs": 0}, {"graphs": 1}, {"graphs": 3}, {"hvp": "forward"}]


class Squashed(nn.Module):
    """A network with Mish, whose backward has no forward derivative in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Mish(), nn.Linear(8, WAYS))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def learner(
    module: nn.Module, metagrad: MetaGradient, adaptation: Adaptation, **rest
) -> MetaLearner:
    aggregation = rest.pop("aggregation", Mean())
    return MetaLearner(
        module, loss, adaptation=adaptation, metagrad=metagrad, aggregation=aggregation, **rest
    )


def compared(
    module: nn.Module, adaptation: Adaptation, batch: TaskBatch, *recursions: Recursion
) -> tuple[list[MetaLearner], list[Tensor]]:
    """Learners and meta-gradients of Exact and others, each with the same random numbers."""
    seed = int(torch.randint(2**31, ()))
    learners, found = [], []
    for metagrad in (Exact(), *recursions):
        torch.manual_seed(seed)
        learners.append(learner(copy.deepcopy(module), metagrad, adaptation))
        found.append(learners[-1].meta_gradient(batch))
    for _, result in found[1:]:
        torch.testing.assert_close(vars(result), vars(found[0][1]))
    return learners, [f for f, _ in found]


def assert_same(found: list[Tensor]) -> None:
    for other in found[1:]:
        assert (other - found[0]).norm() <= TOLERANCE * found[0].norm()


def assert_same_buffers(one: MetaLearner, other: MetaLearner) -> None:
    pairs = zip(one.module.buffers(), other.module.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
@pytest.mark.parametrize("name", MODULES)
def test_it_is_exact(name: str, adaptation: str, steps: int) -> None:
    module, batch = MODULES[name]().double(), tasks(2)
    recursions = [Recursion(**options) for options in RECURSIONS]
    (exact, *others), found = compared(module, ADAPTATIONS[adaptation](steps), batch, *recursions)
    assert_same(found)
    # Replayed steps must not update running statistics a second time.
    for other in others:
        assert_same_buffers(exact, other)


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("graphs", [0, 1])
@pytest.mark.parametrize("make", [Noisy, Drifting], ids=lambda m: m.__name__)
def test_inner_steps_are_replayed_exactly(make, graphs: int, mode: str, adaptation: str) -> None:
    module = make().double().train(mode == "train")
    recursion = Recursion(graphs=graphs)
    learners, found = compared(module, ADAPTATIONS[adaptation](3), tasks(2), recursion)
    assert_same(found)
    assert_same_buffers(*learners)


def test_the_reverse_sweep_preserves_the_random_state() -> None:
    batch, states = tasks(2, torch.float32), []
    for metagrad in (Exact(), Recursion()):
        torch.manual_seed(5)
        learner(Noisy(), metagrad, SGD(0.3, 2)).meta_gradient(batch)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("hvp", ["reverse", "forward"])
def test_cuda_masks(hvp: str) -> None:
    batch = tasks(2).to("cuda")
    _, found = compared(Noisy().double().cuda(), SGD(0.3, 3), batch, Recursion(hvp, graphs=0))
    assert_same(found)


def test_a_loss_without_curvature() -> None:
    module, batch = nn.Sequential(nn.Flatten(), nn.Linear(16, WAYS)).double(), tasks(2)

    def linear(output: Tensor, target: Tensor) -> Tensor:
        return output.gather(1, target[:, None]).mean()

    for hvp in ("reverse", "forward"):
        found = [
            MetaLearner(
                module, linear, adaptation=SGD(0.1, 2), metagrad=metagrad, aggregation=Mean()
            ).meta_gradient(batch)[0]
            for metagrad in (Exact(), Recursion(hvp, graphs=0))
        ]
        assert_same(found)


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_training_matches_the_exact_meta_gradient(adaptation: str) -> None:
    batches = [tasks(3) for _ in range(3)]
    module = MODULES["running batch norm"]().double()
    trained = []
    for metagrad in (Exact(), Recursion()):
        model = learner(
            copy.deepcopy(module),
            metagrad,
            ADAPTATIONS[adaptation](2),
            aggregation=GradientAgreement(),  # needs the inner gradients, too
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        )
        for batch in batches:
            model.step(batch)
        trained.append(model.module.state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-8, atol=1e-10)


def memory(metagrad: MetaGradient, adaptation: Adaptation) -> int:
    model, batch = learner(MODULES["batch norm"](), metagrad, adaptation), tasks(2, torch.float32)
    return peak_saved_bytes(lambda: model.meta_gradient(batch))


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_memory_is_independent_of_the_inner_steps(adaptation: str) -> None:
    make = ADAPTATIONS[adaptation]
    one, many = (memory(Exact(), make(steps)) for steps in (1, 8))
    assert many > 4 * one
    for graphs in (0, 1):
        few, same = (memory(Recursion(graphs=graphs), make(steps)) for steps in (1, 8))
        assert same == few
        assert few <= one


def test_operations_without_a_forward_derivative_are_refused() -> None:
    module, batch = Squashed().double(), tasks(1)
    with pytest.raises(NotImplementedError, match=r"mish_backward.*hvp='reverse'"):
        learner(module, Recursion("forward"), SGD(0.1)).step(batch)
    _, found = compared(module, SGD(0.1), batch, Recursion(graphs=0))
    assert_same(found)
    squared = MetaLearner(
        nn.Linear(4, 1),
        nn.functional.mse_loss,
        adaptation=SGD(0.1),
        metagrad=Recursion("forward"),
        aggregation=Mean(),
        engine="loop",
    )
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 1)
    with pytest.raises(NotImplementedError, match="forward derivative"):
        squared.step(TaskBatch(x, y, x, y))


def test_other_errors_propagate() -> None:
    with pytest.raises(ValueError, match="hvp must be one of auto, reverse, forward; got 'fast'"):
        Recursion("fast")
    for options in ({"graphs": -1}, {"hvp": "forward", "graphs": 1}):
        with pytest.raises(ValueError, match=r"graphs must be (an integer of at least 0|0 with)"):
            Recursion(**options)
    calls = []

    def fails_in_the_reverse_sweep(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("third")
        return loss(output, target)

    for hvp in ("reverse", "forward"):
        calls.clear()
        model = learner(mlp(), Recursion(hvp, graphs=0), SGD(0.1))
        model = model.with_components(loss=fails_in_the_reverse_sweep)
        with pytest.raises(RuntimeError, match="third"):
            model.step(tasks(1, torch.float32))
