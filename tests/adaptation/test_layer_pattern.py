"""Meta-gradients with layer patterns against plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adam, Adaptation, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact, FirstOrder, GSLCorrection, MetaGradient, Recursion, Reptile
from fastmeta.models import MLP, Conv4
from tests.adaptation.layer_pattern_reference import learner, names_of, reference_meta_gradients
from tests.helpers.problems import MODULES, WAYS, mlp, tasks
from tests.helpers.reference_loops import LR

TOLERANCE = 1e-9  # relative, float64
PATTERNS = ["".join(bits) for bits in product("01", repeat=5)][1:]

SECOND_ORDER: dict[str, Callable[[], MetaGradient]] = {
    "exact": Exact,
    "recursion": Recursion,
    "recursion, no graph kept": lambda: Recursion(graphs=0),
    "recursion, forward": lambda: Recursion("forward"),
}


def conv4(size: int = 12) -> nn.Module:
    return Conv4(1, size, WAYS, hidden=3).double()


def images(count: int = 2, size: int = 12) -> TaskBatch:
    def draw(each: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(WAYS).repeat(each).expand(count, -1).contiguous()
        return torch.randn(count, WAYS * each, 1, size, size, dtype=torch.float64), y

    return TaskBatch(*draw(2), *draw(3))


def assert_close(found: Tensor, expected: Tensor, *context: Any) -> None:
    assert (found - expected).norm() <= TOLERANCE * expected.norm(), context


@pytest.mark.parametrize("metagrad", [Exact, Recursion, FirstOrder, GSLCorrection, Reptile])
@pytest.mark.parametrize("name", MODULES)
def test_full_pattern_is_the_adaptation_itself(name: str, metagrad) -> None:
    module, batch = MODULES[name]().double(), tasks()
    module.eval()  # else running statistics would differ
    plain = MetaLearner(
        module,
        F.cross_entropy,
        adaptation=SGD(LR, 3),
        metagrad=metagrad(),
        aggregation=Mean(),
        engine="loop",
    )
    expected, result = plain.meta_gradient(batch)
    found, same = learner(module, "full", metagrad()).meta_gradient(batch)
    assert torch.equal(found, expected)
    assert all(map(torch.equal, vars(same).values(), vars(result).values()))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_all_patterns_of_conv4(pattern: str) -> None:
    module, batch = conv4(), images(1)
    routes = {**SECOND_ORDER, "first order": FirstOrder}
    expected = {
        second: reference_meta_gradients(module, batch, [pattern] * 3, second).mean(0)
        for second in (True, False)
    }
    for (name, make), fuse in product(routes.items(), (True, False)):
        found, _ = learner(module, pattern, make(), fuse=fuse).meta_gradient(batch)
        assert_close(found, expected[name != "first order"], name, fuse)


def test_head_is_anil() -> None:
    """Raghu et al. 2020: features are computed once, the inner loop adapts only the classifier."""
    module, batch = conv4(), images()
    body, head = list(module.features.parameters()), list(module.head.parameters())
    total: Any = 0
    for task in batch:
        support, query = module.features(task.support_x), module.features(task.query_x)
        weight, bias = head
        for _ in range(3):
            loss = F.cross_entropy(F.linear(support, weight, bias), task.support_y)
            d_weight, d_bias = torch.autograd.grad(loss, [weight, bias], create_graph=True)
            weight, bias = weight - LR * d_weight, bias - LR * d_bias
        total = total + F.cross_entropy(F.linear(query, weight, bias), task.query_y)
    grads = torch.autograd.grad(total / len(batch), [*body, *head])
    expected = torch.cat([g.flatten() for g in grads])
    for make in SECOND_ORDER.values():
        found, _ = learner(module, "head", make()).meta_gradient(batch)
        assert_close(found, expected)


def test_body_is_boil() -> None:
    """Oh et al. 2021: the inner loop adapts everything but the classifier."""
    module, batch = conv4(), images()
    body, head = dict(module.features.named_parameters()), list(module.head.parameters())
    total: Any = 0
    for task in batch:
        fast = dict(body)
        for _ in range(3):
            features = functional_call(module.features, fast, (task.support_x,))
            loss = F.cross_entropy(F.linear(features, *head), task.support_y)
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {n: p - LR * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        features = functional_call(module.features, fast, (task.query_x,))
        total = total + F.cross_entropy(F.linear(features, *head), task.query_y)
    grads = torch.autograd.grad(total / len(batch), [*body.values(), *head])
    expected = torch.cat([g.flatten() for g in grads])
    for make in SECOND_ORDER.values():
        found, _ = learner(module, "body", make()).meta_gradient(batch)
        assert_close(found, expected)


@pytest.mark.parametrize(
    ("pattern", "steps"),
    [
        ("full/head/head", ["111", "001", "001"]),
        ("head/full", ["001", "111", "111"]),
        ("100/010/001", ["100", "010", "001"]),
        ("body/001", ["110", "001", "001"]),
        ("011/full/head/body", ["011", "111", "001"]),
    ],
)
def test_a_pattern_per_step(pattern: str, steps: list[str]) -> None:
    module, batch = MLP(16, WAYS, (6, 5), nn.Tanh).double(), tasks()
    for name, make in {**SECOND_ORDER, "first order": FirstOrder}.items():
        expected = reference_meta_gradients(module, batch, steps, name != "first order").mean(0)
        for engine in ("loop", "batched"):
            found, _ = learner(module, pattern, make(), engine=engine).meta_gradient(batch)
            assert_close(found, expected, name, engine)


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    """Widths of an MLP, and the bits of each inner step."""
    widths = draw(st.lists(st.integers(1, 5), min_size=0, max_size=3))
    layers = len(widths) + 1
    numbers = draw(st.lists(st.integers(1, 2**layers - 1), min_size=1, max_size=4))
    return widths, [f"{number:0{layers}b}" for number in numbers]


@settings(max_examples=40)
@given(networks(), st.sampled_from(["loop", "batched"]))
def test_any_pattern_of_any_mlp(case: tuple[list[int], list[str]], engine: str) -> None:
    widths, steps = case
    module, batch = MLP(16, WAYS, widths, nn.Tanh).double(), tasks(2)
    for make, second in ((FirstOrder, False), (Exact, True), (Recursion, True)):
        model = learner(module, "/".join(steps), make(), SGD(LR, len(steps)), engine=engine)
        found, _ = model.meta_gradient(batch)
        assert_close(found, reference_meta_gradients(module, batch, steps, second).mean(0))


INNER: dict[str, Callable[[], Adaptation]] = {
    "momentum": lambda: SGD(0.2, 3, momentum=0.8),
    "adam": lambda: Adam(0.05, 3, eps=1e-3),
    "rates": lambda: MetaSGD(LR, 3),
    "rate a tensor": lambda: MetaSGD(LR, 3, per="tensor"),
}


@pytest.mark.parametrize("steps", [["011"] * 3, ["111", "001", "010"]], ids="/".join)
@pytest.mark.parametrize("inner", INNER)
def test_other_adaptations(inner: str, steps: list[str]) -> None:
    """Frozen layers keep their parameters and state; learned rates have their gradients."""
    module, batch = MLP(16, WAYS, (6, 5), nn.Tanh).double(), tasks()
    rule = INNER[inner]()
    params = dict(module.named_parameters())
    rule.bind(list(params.values()), list(params))
    count, total = len(params), 0
    for task in batch:
        fast = list(params.values())
        state = rule.start(fast)
        for k, names in enumerate(names_of(module, steps)):
            values = dict(zip(params, fast, strict=True))
            loss = F.cross_entropy(
                functional_call(module, values, (task.support_x,)), task.support_y
            )
            grads = torch.autograd.grad(loss, fast, create_graph=True)
            updated, after = rule.update(k, fast, grads, state)
            adapted = [name in names for name in params]
            fast = [
                m if yes else p.clone() for m, p, yes in zip(updated, fast, adapted, strict=True)
            ]
            state = [
                a if adapted[i % count] else s
                for i, (a, s) in enumerate(zip(after, state, strict=True))
            ]
        values = dict(zip(params, fast, strict=True))
        output = functional_call(module, values, (task.query_x,))
        total = total + F.cross_entropy(output, task.query_y) / len(batch)
    leaves = [*params.values(), *rule.rates]
    grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    expected = torch.cat([g.flatten() for g in grads])
    for make in SECOND_ORDER.values():
        model = learner(module, "/".join(steps), make(), INNER[inner]())
        assert_close(model.meta_gradient(batch)[0], expected)


def test_only_elementwise_adaptations_are_batched() -> None:
    class Own(SGD):
        pass

    for inner, allowed in ((SGD(LR), True), (Adam(LR), True), (Own(LR), False)):
        model = learner(mlp(), "head", Exact(), inner, engine="batched")
        if allowed:
            model.step(tasks(2, torch.float32))
        else:
            with pytest.raises(ValueError, match="LayerPattern does not declare task_batchable"):
                model.step(tasks(2, torch.float32))
