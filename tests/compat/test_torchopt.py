"""Agreement with TorchOpt, torch's optimizers, autograd of unrolled steps and closed forms."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from fastmeta.compat import torchopt as ours
from tests.compat.torchopt_loops import CASES, CLASSIC, classic, data, module, network, root
from tests.compat.training_loops import seed


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("case", CASES)
def test_results_match_torchopt(case: str, torchopt: ModuleType) -> None:
    number, results = random.randrange(2**31), []
    for library in (ours, torchopt):
        seed(number)
        results.append(CASES[case](library, torch.float64))
    assert len(results[0]) > 2
    for mine, its in zip(*results, strict=True):
        scale = its.abs().max().item() if its.is_floating_point() else 0.0
        assert_close(mine, its, rtol=0, atol=1e-11 * scale)


@pytest.fixture
def double() -> Iterator[None]:
    """Bias corrections are in the default dtype, as in TorchOpt."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda params: torch.optim.Adam(params, 0.05),
    "adamw": lambda params: torch.optim.AdamW(params, 0.05),
    "rmsprop": lambda params: torch.optim.RMSprop(params, 0.01),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CLASSIC)
def test_steps_are_those_of_torch(name: str) -> None:
    number, results = random.randrange(2**31), []
    for make in (CLASSIC[name], lambda _, params: TORCH[name](params)):
        seed(number)
        results.append(classic(ours, torch.float64, make))
    assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("double")
def test_masked_weight_decay() -> None:
    """Which TorchOpt 0.7.3 has, but cannot run."""
    number, results = random.randrange(2**31), []
    masks = (lambda leaves: [g.dim() > 1 for g in leaves], [True, False, False, True, False])
    for mask in masks:
        seed(number)
        make = partial(_masked, mask)
        results.append(classic(ours, torch.float64, make))
    seed(number)
    results.append(classic(ours, torch.float64, lambda _, params: _grouped(list(params))))
    for found in results[:2]:
        assert_close(found, results[2], rtol=1e-10, atol=1e-12)


def _masked(mask: Any, library: ModuleType, params: Any) -> Any:
    return library.AdamW(params, 0.05, weight_decay=0.1, mask=mask)


def _grouped(params: list[Tensor]) -> torch.optim.Optimizer:
    matrices = [p for p in params if p.dim() > 1]
    others = {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}
    return torch.optim.AdamW([{"params": matrices}, others], 0.05, weight_decay=0.1)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("make", [ours.MetaSGD, ours.MetaAdam], ids=["sgd", "adam"])
def test_meta_gradients_are_those_of_the_unrolled_steps(make: Any) -> None:
    """Also of tied and frozen parameters, which are updated once or not at all."""
    net: Any = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    net[2].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    start = {n: p for n, p in net.named_parameters() if p.requires_grad}
    x, y = data(torch.float64)[0], data(torch.float64)[0]
    fast: dict[str, Tensor] = dict(start)
    m, v = dict.fromkeys(start, 0.0), dict.fromkeys(start, 0.0)
    for k in range(1, 4):
        tied = {**fast, "2.weight": fast["0.weight"]}
        loss = (functional_call(net, tied, (x,)) - y).square().mean()
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        for (name, p), g in zip(fast.items(), grads, strict=True):
            if make is ours.MetaSGD:
                fast[name] = p - 0.1 * g
            else:
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g * g
                step = m[name] / (1 - 0.9**k) / ((v[name] / (1 - 0.999**k)).sqrt() + 1e-8)
                fast[name] = p - 0.1 * step
    total = sum(p.pow(3).sum() for p in fast.values())
    expected = torch.autograd.grad(total, list(start.values()))
    optimizer = make(net, lr=0.1)
    for _ in range(3):
        optimizer.step((net(x) - y).square().mean())
    assert net[0].weight is net[2].weight
    found = torch.autograd.grad(
        sum(p.pow(3).sum() for p in net.parameters() if p.requires_grad), list(start.values())
    )
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_step_is_differentiable_at_zero_gradients() -> None:
    """Unlike in TorchOpt."""
    net = nn.Linear(2, 1, bias=False)
    weight = net.weight
    optimizer = ours.MetaAdam(net, lr=0.1)
    optimizer.step(net(torch.tensor([[1.0, 0.0]])).sum())
    net(torch.ones(1, 2)).square().sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("by", ["reference", "copy", "deepcopy"])
def test_state_of_modules(by: Any) -> None:
    net = network(torch.float64)
    x, _ = data(torch.float64)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    params = list(net.parameters())
    state = ours.extract_state_dict(net, by=by, detach_buffers=True)
    ours.MetaSGD(net, lr=0.1).step(net(x).square().sum())
    changed = net.state_dict()
    assert all(not torch.equal(changed[n], t) for n, t in before.items())
    ours.recover_state_dict(net, state)
    assert_close(net.state_dict(), before)
    own = list(net.parameters())
    assert (own[0] is params[0]) == (by == "reference")
    assert (own[0].grad_fn is not None) == (by == "copy")
    net(x)  # updates running statistics, but not those in the state
    ours.recover_state_dict(net, state)
    assert_close(net.state_dict(), before)


def test_clones() -> None:
    net = network(torch.float64)
    optimizer = ours.MetaAdam(net, lr=0.1)
    optimizer.step(net(data(torch.float64)[0]).square().sum())
    clone = ours.module_clone(net, by="copy")
    sum(p.sum() for p in clone.parameters()).backward(retain_graph=True)
    assert ours.module_clone(net, by="deepcopy")[0].weight.is_leaf
    assert ours.module_clone(net)[0].weight is net[0].weight
    other = ours.module_clone(optimizer, by="deepcopy")
    assert_close(other.state_dict()[0][1].mu, optimizer.state_dict()[0][1].mu)
    assert ours.module_detach_(net) is net
    assert net[0].weight.is_leaf
    tree = ours.module_clone({"a": torch.ones(2, requires_grad=True)}, by="copy")
    assert tree["a"].grad_fn is not None


def test_implicit_functions_in_closed_form() -> None:
    """The derivative of the solution of a linear system."""
    results = []
    for solver, options in (("solve_inv", {}), ("solve_normal_cg", {"rtol": 1e-13})):
        seed(5)
        results.append(root(ours, torch.float64, solver, **options))
    assert_close(*results, rtol=1e-9, atol=1e-11)
    seed(5)
    x, y = torch.randn(12, 5).double(), torch.randn(12).double().requires_grad_()
    strength = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    w = torch.linalg.solve(x.T @ x / 12 + strength.exp().diag(), x.T @ y / 12)
    expected = torch.autograd.grad((w**3).sum(), [strength, y])
    assert_close(results[0], [w.detach(), *expected], rtol=1e-9, atol=1e-11)


def test_structures_and_other_results() -> None:
    """Solutions in dicts, and a second result of the solver."""

    def optimality(w: dict[str, Tensor], target: list[Tensor]) -> dict[str, Tensor]:
        return {"a": 2 * w["a"] - target[0], "b": w["b"] - w["a"] * target[1]}

    @ours.diff.implicit.custom_root(optimality, argnums=1, has_aux=True)
    def solve(_: Any, target: list[Tensor]) -> tuple[dict[str, Tensor], str]:
        half = target[0] / 2
        return {"a": half, "b": half * target[1]}, "done"

    target = [torch.tensor([3.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)]
    solution, message = solve(None, target=target)
    assert message == "done"
    grads = torch.autograd.grad(solution["b"].sum(), target)
    assert_close(grads, (torch.tensor([2.5]), torch.tensor([1.5])))


def test_implicit_module_against_long_training() -> None:
    """Differences of the outer loss at solutions for moved meta-parameters."""
    seed(7)
    loss, *grads = module(ours, torch.float64)
    assert all(g.isfinite().all() for g in grads)
    assert loss > 0

    class Ridge(ours.nn.ImplicitMetaGradientModule):
        def __init__(self, strength: Tensor) -> None:
            super().__init__()
            self.strength = strength
            self.weight = torch.zeros(5, dtype=torch.float64, requires_grad=True)
            self.register_buffer("offset", torch.ones(()).double())

        def optimality(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return (x.T @ (x @ self.weight - y * self.offset) + self.strength.exp() * self.weight,)

        def solve(self, x: Tensor, y: Tensor) -> str:
            matrix = x.T @ x + self.strength.exp() * torch.eye(5)
            self.weight.copy_(torch.linalg.solve(matrix, x.T @ y))
            return "solved"

    strength = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    ridge = Ridge(strength)
    assert [n for n, _ in ridge.named_parameters()] == ["weight"]
    assert [n for n, _ in ridge.named_meta_parameters()] == ["strength"]
    x, y = torch.randn(9, 5).double(), torch.randn(9).double()
    w = torch.linalg.solve(x.T @ x + strength.exp() * torch.eye(5), x.T @ y)
    expected = torch.autograd.grad(w.sum(), strength)[0]
    for _ in range(2):  # also from a solution that has a graph
        assert ridge.solve(x, y) == "solved"
        found = torch.autograd.grad(ridge.weight.sum(), strength)[0]
        assert_close(found, expected, rtol=1e-5, atol=0)  # the solver's tolerance


def test_what_is_missing() -> None:
    with pytest.raises(ImportError, match=r"has no MetaAdagrad: use MetaSGD, MetaAdam"):
        ours.MetaAdagrad  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match="has no visual: use the package torchviz"):
        import_module("fastmeta.compat.torchopt.visual")
    from fastmeta.compat.torchopt.diff.implicit.nn import ImplicitMetaGradientModule
    from fastmeta.compat.torchopt.optim.meta import MetaAdam

    assert MetaAdam is ours.MetaAdam
    assert ImplicitMetaGradientModule is ours.nn.ImplicitMetaGradientModule


def test_errors() -> None:
    net = nn.Linear(2, 1)
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, "lr must be at least 0 or a schedule; got -1", lambda: ours.sgd(-1)),
        (ValueError, "nesterov=True needs momentum", lambda: ours.sgd(0.1, nesterov=True)),
        (ValueError, "nesterov=True needs momentum", lambda: ours.rmsprop(nesterov=True)),
        (ValueError, "each of betas must be", lambda: ours.adam(betas=(1.0, 0.9))),
        (ValueError, "weight_decay must be", lambda: ours.adamw(weight_decay=-1.0)),
        (TypeError, "impl must be a functional optimizer", lambda: ours.FuncOptimizer(net)),
        (ValueError, "got list", lambda: ours.extract_state_dict([])),
        (ValueError, "by must be one of", lambda: ours.extract_state_dict(net, by="value")),
        (ValueError, "expected no 0", lambda: ours.diff.implicit.custom_root(max, argnums=0)),
        (
            ValueError,
            "weight decay needs the parameters",
            lambda: ours.sgd(0.1, weight_decay=0.1).update([torch.ones(1)], ((), (), ())),
        ),
        (ValueError, "expected the state of 3", lambda: ours.sgd(0.1).update([None], ())),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(TypeError, match="Bare must define objective or optimality"):

        class Bare(ours.nn.ImplicitMetaGradientModule):
            pass
