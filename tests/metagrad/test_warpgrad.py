"""The trajectory-free meta-gradient of WarpGrad against plain autograd and its limits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import CoLearner, MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adam, Adaptation, LayerPattern, MetaSGD
from fastmeta.aggregation import GradientAgreement, Mean
from fastmeta.learners import build
from fastmeta.metagrad import Exact, FirstOrder, Leap, MetaGradient, Reptile, WarpGrad
from fastmeta.models import MLP, Conv4
from tests.helpers.problems import WAYS, loss, mlp, tasks
from tests.helpers.reference_loops import LR
from tests.metagrad.autograd_memory import peak_saved_bytes

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(16, WAYS, (6, 5), nn.Tanh, warp=True),
    "conv4": lambda: Conv4(1, 4, WAYS, hidden=3, warp=True),
}


def stirred(name: str) -> nn.Module:
    """With warp layers away from the identity."""
    module = NETWORKS[name]().double()
    with torch.no_grad():
        for key, param in module.named_parameters():
            if "warp" in key:
                param += 0.2 * torch.randn_like(param)
    return module


def learner(
    module: nn.Module,
    metagrad: MetaGradient,
    steps: int = 3,
    inner: Adaptation | None = None,
    **options: Any,
) -> MetaLearner:
    adaptation = LayerPattern(inner or SGD(LR, steps), "!*warp*")
    rest = {"metagrad": metagrad, "aggregation": Mean(), "engine": "loop", **options}
    return MetaLearner(module, loss, adaptation=adaptation, **rest)


def split(model: MetaLearner, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """The meta-gradient of the adapted parameters, and that of warp layers and rates."""
    model.backward(batch)
    own = list(model.module.named_parameters())
    grads = [(p.grad, "warp" in n) for n, p in own]
    grads += [(rate.grad, True) for rate in model.adaptation.rates]
    return (
        torch.cat([g.flatten() for g, meta in grads if not meta]),
        torch.cat([g.flatten() for g, meta in grads if meta]),
    )


def reference(
    module: nn.Module, batch: TaskBatch, steps: int, rates: Sequence[Tensor] | None
) -> Tensor:
    """The gradient of `1/K sum_k Q(theta_k - lr grad S(theta_k))` for warp layers and rates."""
    params = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    moving = [n for n in params if "warp" not in n]
    own = [r.detach().clone().requires_grad_() for r in rates or []]
    lr = dict(zip(params, own, strict=True)) if own else dict.fromkeys(params, LR)
    total: Any = 0
    for task in batch:
        point = {n: params[n].detach().requires_grad_() for n in moving}
        warps = {n: params[n] for n in params if n not in moving}
        for _ in range(steps):
            value = loss(
                functional_call(module, {**point, **warps}, (task.support_x,)), task.support_y
            )
            grads = torch.autograd.grad(value, list(point.values()), create_graph=True)
            after = {n: p - lr[n] * g for (n, p), g in zip(point.items(), grads, strict=True)}
            output = functional_call(module, {**after, **warps}, (task.query_x,))
            total = total + loss(output, task.query_y) / steps
            point = {n: p.detach().requires_grad_() for n, p in after.items()}
    sources = [*(p for n, p in params.items() if n not in moving), *own]
    found = torch.autograd.grad(total / len(batch), sources, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_warp_layers_and_rates_have_the_gradient_of_single_steps(name: str, rates: bool) -> None:
    module, batch = stirred(name), tasks()
    inner = MetaSGD(LR, 3, per="tensor") if rates else None
    model = learner(module, WarpGrad(), inner=inner)
    expected = reference(module, batch, 3, model.adaptation.rates if rates else None)
    _, found = split(model, batch)
    assert (found - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("initialisation", "alone"),
    [("leap", Leap()), ("reptile", Reptile(use_query=False)), ("first-order", FirstOrder())],
)
def test_the_initialisation_has_its_own_meta_gradient(
    name: str, initialisation: Any, alone: MetaGradient
) -> None:
    module, batch = stirred(name), tasks()
    model = learner(module, WarpGrad(initialisation))
    (found, _), (expected, _) = split(model, batch), split(learner(module, alone), batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    result, same = (m.meta_gradient(batch)[1] for m in (model, learner(module, Exact())))
    torch.testing.assert_close(vars(result), vars(same))


@pytest.mark.parametrize("inner", [SGD, Adam])
def test_one_step_is_maml_for_warp_layers(inner: type[Adaptation]) -> None:
    module, batch = stirred("mlp"), tasks()
    options = {"eps": 1e-2} if inner is Adam else {}
    found, expected = (
        split(learner(module, metagrad, inner=inner(LR, 1, **options)), batch)[1]
        for metagrad in (WarpGrad(), Exact())
    )
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_the_approximation_is_first_order_maml_on_average_over_steps() -> None:
    module, batch = stirred("mlp"), tasks()
    model = learner(module, WarpGrad("first-order", approximate=True))
    kinds = [split(learner(module, FirstOrder(), k + 1), batch)[1] for k in range(3)]
    expected = torch.stack(kinds).mean(0)
    found = split(model, batch)[1]
    assert (found - expected).norm() <= 1e-9 * expected.norm()
    assert not model.metagrad.second_order
    assert model.metagrad.checkpointed() is model.metagrad


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("initialisation", ["leap", "reptile", "first-order"])
def test_stacked_tasks(initialisation: Any, approximate: bool) -> None:
    module, batch, found = stirred("conv4"), tasks(), []
    for engine in ("loop", "batched"):
        metagrad = WarpGrad(initialisation, approximate)
        options = {"engine": engine, "aggregation": GradientAgreement()}  # of support gradients
        flat, result = learner(module, metagrad, **options).meta_gradient(batch)
        found.append((flat, *vars(result).values()))
    for loop, batched in zip(*found, strict=True):
        torch.testing.assert_close(batched, loop, rtol=1e-9, atol=1e-11)


def test_memory_does_not_grow_with_the_inner_steps() -> None:
    module, batch = stirred("conv4"), tasks(1)

    def peak(metagrad: MetaGradient, steps: int) -> int:
        model = learner(module, metagrad, steps)
        return peak_saved_bytes(lambda: model.meta_gradient(batch))

    assert peak(WarpGrad(), 20) == peak(WarpGrad(), 2)
    assert peak(Exact(), 20) > 5 * peak(WarpGrad(), 20)


def test_without_warp_layers_only_the_initialisation_is_trained() -> None:
    module, batch = mlp().double(), tasks()
    found, expected = (
        MetaLearner(
            module, loss, adaptation=SGD(LR, 2), metagrad=metagrad, aggregation=Mean()
        ).meta_gradient(batch)
        for metagrad in (WarpGrad(), Leap())
    )
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(vars(found[1]), vars(expected[1]))


def test_a_co_learner_is_trained_and_leap_refuses_one() -> None:
    module = mlp()
    head = CoLearner(nn.Linear(8, WAYS), "2")
    options: dict[str, Any] = {"inner_lr": LR, "inner_steps": 2, "co_learner": head}
    for adaptation in ("sgd", "boil"):
        model = build("maml", module, loss, metagrad="warpgrad", adaptation=adaptation, **options)
        model.backward(tasks(2, torch.float32))
        assert all(p.grad.norm() > 0 for p in head.head.parameters())
    with pytest.raises(ValueError, match=r"metagrad\.Leap has none; expected another"):
        build("leap", module, loss, **options)


def test_running_statistics_and_a_resumed_run() -> None:
    batches = [tasks(2, torch.float32) for _ in range(4)]
    module = Conv4(1, 4, WAYS, hidden=3, warp=True, batch_norm_stats=True, batch_norm_steps=2)
    whole, half, resumed = (
        learner(copy.deepcopy(module), WarpGrad(), 2, MetaSGD(LR, 2)) for _ in range(3)
    )
    for batch in batches:
        whole.step(batch)
    for batch in batches[:2]:
        half.step(batch)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in batches[2:]:
        resumed.step(batch)
    ends = [(*m.module.state_dict().values(), *m.adaptation.rates) for m in (whole, resumed)]
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)
    first = module.state_dict()
    for name, value in whole.module.state_dict().items():
        if "warp" in name or "running" in name:
            assert not torch.equal(value, first[name])


def test_invalid_options() -> None:
    with pytest.raises(ValueError, match="initialisation must be one of leap, reptile, first-or"):
        WarpGrad("maml")
    with pytest.raises(ValueError, match="expected at least one inner step"):
        learner(stirred("mlp"), WarpGrad(), 0).step(tasks())
