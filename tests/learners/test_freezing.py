"""Parameters that are frozen or unfrozen after the learner was built."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmeta import FOMAML, MAML, CoLearner, MetaLearner, metagrad
from fastmeta.adaptation import SGD, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.learners import build, compare_with_exact, descent_condition
from fastmeta.tasks import TaskBatch
from tests.helpers.problems import WAYS, loss, tasks

FROZEN = ("3.weight", "1.bias")

CASES: dict[str, dict[str, Any]] = {
    "maml": {"method": "maml"},
    "maml batched": {"method": "maml", "engine": "batched"},
    "fomaml": {"method": "fomaml"},
    "fomaml batched": {"method": "fomaml", "engine": "batched"},
    "fomaml checkpointed": {"method": "fomaml", "checkpoint": True},
    "reptile": {"method": "reptile"},
    "imaml": {"method": "imaml"},
    "maml++": {"method": "maml++"},
    "meta-sgd": {"method": "meta-sgd"},
    "inner adam": {"method": "maml", "adaptation": "adam"},
    "anil": {"method": "anil"},
    "boil of meta-sgd": {"method": "boil", "adaptation_options": {"of": "meta-sgd"}},
    "lambda": {
        "method": "lambda",
        "adaptation_options": {"pattern": "head/full", "of": "lslr"},
    },
    "mixed order": {"method": "maml", "metagrad_options": {"layers": "head/1,5"}},
    "recursion": {"method": "maml", "metagrad": "recursion"},
    "gsl": {"method": "gsl"},
    "gsl by layer": {"method": "gsl", "metagrad_options": {"variant": "R1", "scope": "layer"}},
    "gsl R1 batched": {
        "method": "gsl",
        "metagrad_options": {"variant": "R1"},
        "engine": "batched",
    },
    "gsl R4": {"method": "gsl", "metagrad_options": {"variant": "R4", "every": 1}},
    "pcgrad": {"method": "fomaml", "aggregation": "pcgrad"},
    "cml": {"method": "cml"},
}


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()),
        nn.Linear(8, WAYS),
    )


def set_frozen(module: nn.Module, frozen: bool = True) -> None:
    for name in FROZEN:
        module.get_parameter(name).requires_grad_(not frozen)


def learner_of(name: str, module: nn.Module, **options: Any) -> MetaLearner:
    options = {**CASES[name], **options}
    co_learner = None
    if name == "cml":
        torch.manual_seed(4)
        co_learner = CoLearner(nn.Linear(8, WAYS), "4")
    return build(
        options.pop("method"),
        module,
        loss,
        inner_lr=0.1,
        inner_steps=2,
        co_learner=co_learner,
        **options,
    )


def pair(name: str) -> tuple[MetaLearner, MetaLearner]:
    """A learner whose parameters were frozen later, and one that was built with them frozen."""
    later, before = network(), network()
    found = learner_of(name, later)
    set_frozen(later)
    set_frozen(before)
    return found, learner_of(name, before)


def outcomes(learner: MetaLearner, batch: TaskBatch) -> list[Tensor]:
    flat, result = learner.meta_gradient(batch)
    fast = learner.adapt(batch.support_x[0], batch.support_y[0])
    return [flat, *vars(result).values(), learner.predict(batch), *fast.values()]


@pytest.mark.parametrize("name", CASES)
def test_as_if_frozen_before_construction(name: str) -> None:
    batch = tasks(3, torch.float32)
    found, expected = pair(name)
    for _ in range(2):
        torch.manual_seed(5)
        ours = outcomes(found, batch)
        torch.manual_seed(5)
        theirs = outcomes(expected, batch)
        assert all(map(torch.equal, ours, theirs))
        assert len(ours) == len(theirs)
        for learner in (found, expected):
            torch.manual_seed(6)
            learner.step(batch)
    state = expected.module.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in found.module.state_dict().items())
    for pname, param in found.module.named_parameters():
        assert (param.grad is None) == (pname in FROZEN)


@pytest.mark.parametrize("name", CASES)
def test_unfrozen_again(name: str) -> None:
    """A learner whose parameters were frozen in between equals one that never was."""
    batch = tasks(3, torch.float32)
    module = network()
    found, expected = learner_of(name, module), learner_of(name, network())
    set_frozen(module)
    found.predict(batch)
    set_frozen(module, False)
    torch.manual_seed(5)
    ours = outcomes(found, batch)
    torch.manual_seed(5)
    assert all(map(torch.equal, ours, outcomes(expected, batch)))


def test_optimizer_and_learned_rates_rest() -> None:
    """With momentum, weight decay and gradients of the step before."""
    module, batch = network(), tasks(3, torch.float32)

    def optimizer(params: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=0.1, weight_decay=0.5)

    learner = learner_of("meta-sgd", module, optimizer=optimizer)
    learner.step(batch)
    set_frozen(module)
    before = {n: p.clone() for n, p in module.named_parameters()}
    rates = [rate.clone() for rate in learner.adaptation.rates]
    learner.step(batch)
    for (name, param), rate, old in zip(
        module.named_parameters(), learner.adaptation.rates, rates, strict=True
    ):
        rests = name in FROZEN
        assert torch.equal(param, before[name]) == torch.equal(rate, old) == rests
        assert (param.grad is None) == (rate.grad is None) == rests
    set_frozen(module, False)
    learner.step(batch)
    assert not any(torch.equal(p, before[n]) for n, p in module.named_parameters())


def test_state_is_that_of_all_parameters() -> None:
    module, batch = network(), tasks(3, torch.float32)
    learner = learner_of("meta-sgd", module)
    learner.step(batch)
    set_frozen(module)
    learner.step(batch)
    other = network()
    resumed = learner_of("meta-sgd", other)
    resumed.load_state_dict(copy.deepcopy(learner.state_dict()))
    set_frozen(other)
    for part in (learner, resumed):
        part.step(batch)
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_frozen_co_learner() -> None:
    batch = tasks(3, torch.float32)
    found, expected = learner_of("cml", network()), learner_of("cml", network())
    heads = []
    for learner in (found, expected):
        assert learner.co_learner is not None
        heads.append(learner.co_learner.head)
    heads[0].bias.requires_grad_(False)
    found.step(batch)
    expected.step(batch)
    assert heads[0].bias.grad is None
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].bias, heads[1].bias)
    heads[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        found.step(batch)


def test_diagnostics() -> None:
    batch = tasks(3, torch.float32)
    found, expected = pair("gsl")
    compared = (vars(compare_with_exact(x, batch)) for x in (found, expected))
    torch.testing.assert_close(*compared, rtol=0, atol=0)
    found, expected = pair("cml")
    assert descent_condition(found, batch).keys() == descent_condition(expected, batch).keys()
    components = found.with_components(adaptation=MetaSGD(0.1), metagrad=metagrad.Exact())
    assert components.meta_gradient(batch)[0].isfinite().all()


def test_other_components_of_a_checkpointed_learner() -> None:
    batch = tasks(3, torch.float32)
    found, expected = pair("fomaml checkpointed")
    exact = [x.with_components(metagrad=metagrad.Exact()) for x in (found, expected)]
    assert torch.equal(*(x.meta_gradient(batch)[0] for x in exact))
    set_frozen(found.module, False)
    size = sum(p.numel() for p in found.module.parameters())
    assert len(exact[0].meta_gradient(batch)[0]) == size


def test_the_mlp_engine() -> None:
    module, batch = network(), tasks(3, torch.float32)
    automatic = MAML(module, loss, inner_lr=0.1)
    compiled = MAML(module, loss, inner_lr=0.1, engine="mlp")
    full = compiled.meta_gradient(batch)[0]
    set_frozen(module)
    loop = MAML(module, loss, inner_lr=0.1, engine="loop")
    assert torch.equal(automatic.meta_gradient(batch)[0], loop.meta_gradient(batch)[0])
    for call in (compiled.step, compiled.check):
        with pytest.raises(ValueError, match="engine 'mlp' cannot run this: the learner does not"):
            call(batch)
    compiled.engine = "loop"
    assert torch.equal(compiled.meta_gradient(batch)[0], loop.meta_gradient(batch)[0])
    compiled.engine = "mlp"
    set_frozen(module, False)
    assert torch.equal(compiled.meta_gradient(batch)[0], full)


CALLS: dict[str, Callable[[MetaLearner, TaskBatch], Any]] = {
    "step": lambda learner, batch: learner.step(batch),
    "check": lambda learner, batch: learner.check(batch),
    "predict": lambda learner, batch: learner.predict(batch),
    "adapt": lambda learner, batch: learner.adapt(batch.support_x[0], batch.support_y[0]),
    "compare": compare_with_exact,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_parameter_frozen_on_construction_cannot_follow(call: str) -> None:
    module, batch = network(), tasks(3, torch.float32)
    set_frozen(module)
    learner = FOMAML(module, loss, inner_lr=0.1)
    expected = learner.predict(batch)
    module.get_parameter(FROZEN[0]).requires_grad_(True)
    with pytest.raises(ValueError, match=r"'3.weight' requires a gradient, but did not when .* bu"):
        CALLS[call](learner, batch)
    set_frozen(module)
    assert torch.equal(learner.predict(batch), expected)


def test_everything_frozen() -> None:
    module, batch = network(), tasks(3, torch.float32)
    learner = FOMAML(module, loss, inner_lr=0.1)
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        learner.step(batch)


def test_components_that_cannot_follow() -> None:
    batch = tasks(3, torch.float32)
    options = {"variant": "layer-weights"}
    module = network()
    learner = learner_of("gsl", module, metagrad_options=options)
    set_frozen(module)
    learner.step(batch)  # before the first meta-step there are no weights
    set_frozen(module, False)
    with pytest.raises(ValueError, match=r"has 4 gradient weights; expected 6\. .* restore it"):
        learner.step(batch)
    set_frozen(module)
    learner.step(batch)

    module = network()
    bits = learner_of("lambda", module, adaptation_options={"pattern": "011"})
    module[3].requires_grad_(False)
    with pytest.raises(ValueError, match="'011' has 3 bits, but the network has 2 layers"):
        bits.step(batch)

    class OwnRates(SGD):
        def bind(self, params: Any, names: Any) -> None:
            self.rates = [nn.Parameter(torch.zeros(())) for _ in params]

    module = network()
    own = MetaLearner(
        module,
        loss,
        adaptation=OwnRates(0.1),
        metagrad=metagrad.FirstOrder(),
        aggregation=Mean(),
    )
    set_frozen(module)
    with pytest.raises(ValueError, match=r"OwnRates learns rates .* override OwnRates\.restricted"):
        own.predict(batch)


def test_nothing_is_rebuilt_without_a_change() -> None:
    module, batch = network(), tasks(3, torch.float32)
    learner = FOMAML(module, loss, inner_lr=0.1, engine="loop")
    step = learner._step
    learner.step(batch)
    assert learner._step is step
    set_frozen(module)
    learner.step(batch)
    frozen = learner._step
    assert frozen is not step
    learner.step(batch)
    assert learner._step is frozen
