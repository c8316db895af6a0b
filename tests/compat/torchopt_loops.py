"""Programs as written by users of TorchOpt, for whichever library is passed in."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

INNER_STEPS = 4


def network(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, momentum=0.3), nn.Tanh(), nn.Linear(8, 3)
    ).to(dtype)


def data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(10, 6).to(dtype), torch.randint(3, (10,))


def meta(library: ModuleType, dtype: torch.dtype, make: Callable[..., Any]) -> list[Tensor]:
    """MAML with a differentiable optimizer, as in TorchOpt's README and tutorials."""
    net = network(dtype)
    rate = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    optimizer = make(library, net, rate)
    initial = library.extract_state_dict(net, by="reference", detach_buffers=True)
    states = library.extract_state_dict(optimizer)
    results = []
    for _ in range(2):
        library.recover_state_dict(net, initial)
        library.recover_state_dict(optimizer, states)
        x, y = data(dtype)
        for _ in range(INNER_STEPS):
            optimizer.step(F.cross_entropy(net(x), y))
        x, y = data(dtype)
        loss = F.cross_entropy(net(x), y)
        leaves = [t for group in initial.params for t in group.values()]
        grads = torch.autograd.grad(loss, [*leaves, rate], allow_unused=True)
        results += [loss.detach(), *(g for g in grads if g is not None)]
        results += [p.detach() for p in net.parameters()]
        results += list(net.buffers())
    library.stop_gradient(net)
    library.stop_gradient(optimizer)
    assert all(p.is_leaf for p in net.parameters())
    return results


def functional(
    library: ModuleType, dtype: torch.dtype, make: Callable[..., Any], inplace: bool
) -> list[Tensor]:
    """Training with a functional optimizer on the parameters of a module, in a dict."""
    net = network(dtype)
    params: Any = dict(net.named_parameters())
    optimizer = make(library)
    state = optimizer.init(params)
    start, (x, y) = params, data(dtype)
    for _ in range(INNER_STEPS):
        loss = F.cross_entropy(functional_call(net, params, (x,)), y)
        found = torch.autograd.grad(loss, list(params.values()), create_graph=not inplace)
        grads = dict(zip(params, found, strict=True))
        updates, state = optimizer.update(grads, state, params=params, inplace=inplace)
        params = library.apply_updates(params, updates, inplace=inplace)
    results = [p.detach() for p in params.values()]
    if not inplace:
        loss = F.cross_entropy(functional_call(net, params, (x,)), y)
        results += torch.autograd.grad(loss, list(start.values()))
    return results


def wrapped(library: ModuleType, dtype: torch.dtype) -> list[Tensor]:
    """`FuncOptimizer`."""
    net = network(dtype)
    start = tuple(net.parameters())
    names = [name for name, _ in net.named_parameters()]
    optimizer, params, (x, y) = library.FuncOptimizer(library.adam(0.05)), start, data(dtype)
    for _ in range(INNER_STEPS):
        named = dict(zip(names, params, strict=True))
        loss = F.cross_entropy(functional_call(net, named, (x,)), y)
        params = optimizer.step(loss, params)
    grads = torch.autograd.grad(sum(p.square().sum() for p in params), start)
    return [*(p.detach() for p in params), *grads]


def classic(library: ModuleType, dtype: torch.dtype, make: Callable[..., Any]) -> list[Tensor]:
    """An optimizer as in torch."""
    net = network(dtype)
    optimizer, (x, y) = make(library, net.parameters()), data(dtype)
    for _ in range(INNER_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return [p.detach() for p in net.parameters()]


def root(library: ModuleType, dtype: torch.dtype, solver: str, **options: Any) -> list[Tensor]:
    """Ridge regression with a regularizer for each weight, by `custom_root`."""
    implicit = library.diff.implicit
    x, y = torch.randn(12, 5).to(dtype), torch.randn(12).to(dtype)

    def objective(w: Tensor, strength: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return ((x @ w - y).square().mean() + (strength.exp() * w.square()).sum()) / 2

    linear = getattr(library.linear_solve, solver)(**options)

    @implicit.custom_root(torch.func.grad(objective, argnums=0), argnums=(1, 2), solve=linear)
    def solve(w: Tensor, strength: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return torch.linalg.solve(x.T @ x / len(x) + strength.exp().diag(), x.T @ y / len(x))

    strength = torch.zeros(5, dtype=dtype, requires_grad=True)
    y.requires_grad_()
    found = solve(torch.zeros(5, dtype=dtype), strength, y, x)
    return [found.detach(), *torch.autograd.grad((found**3).sum(), [strength, y])]


def module(library: ModuleType, dtype: torch.dtype) -> list[Tensor]:
    """iMAML by `ImplicitMetaGradientModule`: weights near those of a meta-module."""

    class Inner(
        library.nn.ImplicitMetaGradientModule,
        linear_solve=library.linear_solve.solve_cg(maxiter=30, rtol=1e-12),
    ):
        def __init__(self, meta_net: nn.Module, scale: Tensor) -> None:
            super().__init__()
            self.meta_net = meta_net
            self.scale = scale
            self.net = nn.Linear(6, 3).to(dtype)

        def objective(self, x: Tensor, y: Tensor) -> Tensor:
            pairs = zip(self.net.parameters(), self.meta_net.parameters(), strict=True)
            near = sum((p - q).square().sum() for p, q in pairs)
            return F.cross_entropy(self.net(x), y) + self.scale.exp() * near

        def solve(self, x: Tensor, y: Tensor) -> Any:
            params = tuple(self.parameters())
            optimizer = torch.optim.LBFGS(params, lr=0.5, max_iter=200, tolerance_grad=1e-13)

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = self.objective(x, y)
                loss.backward(inputs=params)
                return loss

            with torch.enable_grad():
                optimizer.step(closure)
            return self

    meta_net = nn.Linear(6, 3).to(dtype)
    scale = torch.tensor(-1.0, dtype=dtype, requires_grad=True)
    inner = Inner(meta_net, scale)
    names = [name for name, _ in inner.named_meta_parameters()]
    assert sorted(names) == ["meta_net.bias", "meta_net.weight", "scale"]
    assert len(list(inner.parameters())) == 2
    x, y = data(dtype)
    inner.solve(x, y)
    x, y = data(dtype)
    loss = F.cross_entropy(inner.net(x), y)
    grads = torch.autograd.grad(loss, [*meta_net.parameters(), scale])
    return [loss.detach(), *grads]


def _clipped(library: ModuleType) -> Any:
    schedule = library.schedule.linear_schedule(0.1, 0.01, 3, 1)
    return library.chain(library.clip.clip_grad_norm(0.3), library.adamw(schedule))


META: dict[str, Callable[..., Any]] = {
    "sgd": lambda o, net, rate: o.MetaSGD(net, lr=0.1),
    "learned sgd": lambda o, net, rate: o.MetaSGD(net, lr=rate),
    "momentum": lambda o, net, rate: o.MetaSGD(net, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda o, net, rate: o.MetaSGD(net, 0.1, 0.9, nesterov=True, maximize=True),
    "adam": lambda o, net, rate: o.MetaAdam(net, lr=0.05, weight_decay=0.01),
    "adam, root": lambda o, net, rate: o.MetaAdam(net, lr=rate, eps_root=1e-8),
    "adamw": lambda o, net, rate: o.MetaAdamW(net, lr=0.05, betas=(0.8, 0.9)),
    "rmsprop": lambda o, net, rate: o.MetaRMSProp(net, 0.01, momentum=0.9, initial_scale=0.1),
    "centered": lambda o, net, rate: o.MetaRMSprop(net, 0.01, centered=True, initial_scale=1.0),
    "chain": lambda o, net, rate: o.MetaOptimizer(net, _clipped(o)),
}
FUNCTIONAL: dict[str, Callable[..., Any]] = {
    "sgd": lambda o: o.sgd(0.1, momentum=0.9, dampening=0.2, weight_decay=0.01),
    "adam": lambda o: o.adam(0.05, weight_decay=0.01, maximize=True),
    "adamw": lambda o: o.adamw(0.05, betas=(0.8, 0.9)),
    "rmsprop": lambda o: o.rmsprop(
        o.schedule.exponential_decay(0.05, 0.5, 1, 2, end_value=0.02), nesterov=True, momentum=0.5
    ),
    "polynomial": lambda o: o.sgd(o.schedule.polynomial_schedule(0.3, 0.1, 2, 3)),
    "chain": _clipped,
}
CLASSIC: dict[str, Callable[..., Any]] = {
    "sgd": lambda o, params: o.SGD(params, 0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda o, params: o.Adam(params, 0.05),
    "adamw": lambda o, params: o.AdamW(params, 0.05),
    "rmsprop": lambda o, params: o.RMSprop(params, 0.01),
}

Case = Callable[[ModuleType, torch.dtype], list[Tensor]]


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {"FuncOptimizer": wrapped, "module": module}
    for name, make in META.items():
        cases[f"meta {name}"] = lambda o, dtype, make=make: meta(o, dtype, make)
    for name, make in FUNCTIONAL.items():
        for inplace in (False, True):
            key = f"functional {name}{', in place' if inplace else ''}"
            cases[key] = lambda o, dtype, m=make, i=inplace: functional(o, dtype, m, i)
    for name, make in CLASSIC.items():
        cases[f"classic {name}"] = lambda o, dtype, make=make: classic(o, dtype, make)
    for solver, options in (
        ("solve_cg", {"maxiter": 3}),
        ("solve_cg", {"ridge": 0.1, "rtol": 1e-12}),
        ("solve_normal_cg", {"maxiter": 4, "atol": 1e-12}),
        ("solve_inv", {}),
        ("solve_inv", {"ns": True, "maxiter": 20, "alpha": 0.1}),
    ):
        cases[f"root {solver} {options}"] = lambda o, dtype, s=solver, k=options: root(
            o, dtype, s, **k
        )
    return cases


CASES = _cases()
