"""Inner optimizers against torch.optim, and their vector-Jacobian products against autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastmeta.adaptation import SGD, Adam, Adaptation, MetaSGD, ProximalSGD, run_inner_loop

PAIRS: dict[
    str, tuple[Callable[[], Adaptation], Callable[[list[Tensor]], torch.optim.Optimizer]]
] = {
    "sgd": (lambda: SGD(0.2, 4), lambda p: torch.optim.SGD(p, lr=0.2)),
    "momentum": (
        lambda: SGD(0.2, 4, momentum=0.7),
        lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.7),
    ),
    "adam": (
        lambda: Adam(0.1, 4, betas=(0.8, 0.95)),
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95)),
    ),
}

NAMES = ["a", "b", "c"]


def quartic(params: list[Tensor]) -> Tensor:
    first, _, last = params
    return (first.pow(4).sum() + (first[:2] * last).sin().sum()) / 3


def start() -> list[Tensor]:
    return [torch.randn(s, dtype=torch.float64) for s in ((3, 2), (4,), (2, 2))]


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_inner_optimizers_are_those_of_torch(name: str, create_graph: bool) -> None:
    ours, theirs = PAIRS[name]
    begin = start()
    params = [p.clone().requires_grad_() for p in begin]
    optimizer = theirs(params)
    for _ in range(4):
        optimizer.zero_grad()
        quartic(params).backward()
        optimizer.step()
    leaves = [p.clone().requires_grad_() for p in begin]
    adapted = run_inner_loop(ours(), quartic, leaves, create_graph=create_graph)
    for found, expected in zip(adapted.fast, params, strict=True):
        torch.testing.assert_close(found, expected)
    assert all(torch.equal(p, b) for p, b in zip(leaves, begin, strict=True))


RULES: dict[str, Callable[[], Adaptation]] = {
    **{name: pair[0] for name, pair in PAIRS.items()},
    "learned rates": lambda: MetaSGD(0.2),
    "learned rate a tensor": lambda: MetaSGD(0.2, per="tensor"),
    "learned rates a step": lambda: MetaSGD(0.2, 4, per_step=True),
    "learned rates a tensor and step": lambda: MetaSGD(0.2, 2, per="tensor", per_step=True),
    "proximal": lambda: ProximalSGD(0.2, lam=0.7),
}


@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_vector_jacobian_product_of_an_update(name: str, idle: bool) -> None:
    rule, params, grads = RULES[name](), start(), list(start())
    rule.bind(params, NAMES)
    state = [torch.rand_like(s) for s in rule.start(params)]
    if idle:
        grads[1] = None
    elif state:  # an element that never had a gradient
        for t in (grads[0], *state[::3]):
            t[0] = 0
    d_params, d_state = start(), [torch.randn_like(s) for s in state]
    pullback = rule.pullback(2, params, grads, state)
    by_autograd = Adaptation.pullback(rule, 2, params, grads, state)
    found, expected = pullback(d_params, d_state), by_autograd(d_params, d_state)
    for mine, reference in zip(found, expected, strict=True):
        assert [t is None for t in mine] == [t is None for t in reference]
        for a, b in zip(mine, reference, strict=True):
            assert a is b or torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("create_graph", [False, True])
def test_proximal_sgd_descends_the_regularized_loss(create_graph: bool) -> None:
    begin = start()
    params = [p.clone().requires_grad_() for p in begin]
    optimizer = torch.optim.SGD(params, lr=0.1)
    for _ in range(6):
        optimizer.zero_grad()
        pull = sum((p - b).square().sum() for p, b in zip(params, begin, strict=True))
        (quartic(params) + 0.7 / 2 * (pull - (params[1] - begin[1]).square().sum())).backward()
        optimizer.step()
    leaves = [p.clone().requires_grad_() for p in begin]
    adapted = run_inner_loop(
        ProximalSGD(0.1, 6, lam=0.7), quartic, leaves, create_graph=create_graph
    )
    torch.testing.assert_close(adapted.fast, params)
    assert torch.equal(adapted.fast[1], begin[1])  # it never had a gradient


def test_adam_is_differentiable_at_a_zero_gradient() -> None:
    params = [torch.zeros(3, dtype=torch.float64, requires_grad=True)]
    fast = run_inner_loop(Adam(0.1, 3), lambda p: p[0].pow(2).sum(), params, create_graph=True).fast
    (grad,) = torch.autograd.grad(fast[0].sum(), params)
    assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: SGD(0.0), "lr must be a positive finite number, got 0.0"),
        (lambda: SGD(0.1, momentum=1.0), r"momentum must be a number in \[0, 1\), got 1.0"),
        (lambda: Adam(0.1, -1), "steps must be an integer of at least 0, got -1"),
        (lambda: Adam(0.1, betas=(0.9, 1.0)), r"betas must be a number in \[0, 1\), got 1.0"),
        (lambda: Adam(0.1, eps=0.0), "eps must be a positive finite number, got 0.0"),
        (lambda: ProximalSGD(0.1, lam=-1.0), "lam must be a finite number of at least 0, got -1.0"),
        (lambda: SGD(float("inf")), "lr must be a positive finite number, got inf"),
        (lambda: SGD("0.1"), "lr must be a positive finite number, got '0.1'"),
        (lambda: SGD(0.1, 1.5), "steps must be an integer of at least 0, got 1.5"),
        (lambda: Adam(0.1, betas=3), r"betas must be two numbers in \[0, 1\), got 3"),
        (lambda: ProximalSGD(0.1, lam=float("nan")), "lam must be a finite number"),
        (lambda: MetaSGD(0.1, per_step="yes"), "per_step must be true or false, got 'yes'"),
        (lambda: MetaSGD(0.1, per="row"), "one of element, tensor; got 'row'"),
    ],
)
def test_invalid_options(make: Callable[[], Adaptation], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        make()


@pytest.mark.parametrize("per", ["element", "tensor"])
def test_learned_rates_belong_to_one_network(per: str) -> None:
    rule, params = MetaSGD(0.1, per=per), start()
    with pytest.raises(RuntimeError, match=r"call bind\(params, names\)"):
        rule.update(0, params, start(), [])
    rule.bind(params, NAMES)
    before = list(rule.rates)
    rule.bind(params, NAMES)
    assert all(a is b for a, b in zip(before, rule.rates, strict=True))
    with pytest.raises(ValueError, match="rates of another network"):
        rule.bind(params[:2], NAMES[:2])
    grads = start()
    found, _ = rule.update(0, params, grads, [])
    expected, _ = SGD(0.1).update(0, params, grads, [])
    torch.testing.assert_close([t.detach() for t in found], expected)
