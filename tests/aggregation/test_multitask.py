"""Aggregation of losses without an inner loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastmeta
from tests.aggregation.jacobians import ALL, SEED, weights


def problem(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A shared trunk and three losses."""
    trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    return trunk, (trunk(torch.randn(7, 4, dtype=dtype)) - 1).square().mean(0)


def jacobian(losses: Tensor, params: list[Tensor]) -> Tensor:
    grads = [torch.autograd.grad(loss, params, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])


def flat(params: list[Tensor]) -> Tensor:
    return torch.cat([p.grad.flatten() for p in params])


@pytest.mark.parametrize("name", sorted({*ALL} - {"spsa"}))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gradient_is_the_weighted_sum(name: str, dtype: torch.dtype) -> None:
    trunk, losses = problem(dtype)
    params = list(trunk.parameters())
    gradients = jacobian(losses, params)
    torch.manual_seed(SEED)
    found = fastmeta.aggregate(losses, trunk.parameters(), name)
    assert torch.equal(found, weights(name, gradients, losses.detach()))
    torch.testing.assert_close(flat(params), found @ gradients)


def test_upgrad_is_the_default() -> None:
    trunk, losses = problem()
    expected = weights("upgrad", jacobian(losses, list(trunk.parameters())))
    assert torch.equal(fastmeta.aggregate(losses.split(1), trunk.parameters()), expected)


def test_options_are_those_of_the_method() -> None:
    trunk, losses = problem()
    expected = weights("cagrad", jacobian(losses, list(trunk.parameters())), c=2.0)
    found = fastmeta.aggregate(losses, trunk.parameters(), "cagrad", c=2.0)
    assert torch.equal(found, expected)


def test_gradients_are_added_to_those_there() -> None:
    trunk, losses = problem()
    params = list(trunk.parameters())
    params[0].grad = torch.ones_like(params[0])
    there = params[0].grad
    expected = torch.autograd.grad(losses.mean(), params, retain_graph=True)
    fastmeta.aggregate(losses, params, "mean")
    assert params[0].grad is there
    torch.testing.assert_close(there, 1 + expected[0])
    torch.testing.assert_close(params[1].grad, expected[1])


def test_unused_parameters_keep_their_gradient() -> None:
    trunk, losses = problem()
    idle, known, frozen = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3))
    known.grad = torch.full_like(known, 3)
    frozen.requires_grad_(False)
    fastmeta.aggregate(losses, [idle, *trunk.parameters(), frozen, known])
    assert idle.grad is None
    assert frozen.grad is None
    assert torch.equal(known.grad, torch.full_like(known, 3))


def test_a_loss_may_depend_on_a_subset_of_parameters() -> None:
    a, b = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    found = fastmeta.aggregate([3 * a.sum(), 3 * b.sum()], [a, b], "mgda")
    torch.testing.assert_close(found, torch.full_like(found, 0.5))
    torch.testing.assert_close(a.grad, torch.full_like(a, 1.5))


def test_a_parameter_given_twice_counts_once() -> None:
    trunk, losses = problem()
    params = list(trunk.parameters())
    gradients = jacobian(losses, params)
    found = fastmeta.aggregate(losses, [*params, *params], "mgda")
    torch.testing.assert_close(flat(params), found @ gradients)


def test_the_graph_is_freed() -> None:
    trunk, losses = problem()
    fastmeta.aggregate(losses, trunk.parameters())
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        losses.sum().backward()


@pytest.mark.parametrize(
    ("losses", "method", "options", "part"),
    [
        (None, "upgrade", {}, "unknown aggregation 'upgrade'; expected one of agreement, "),
        (None, "agreement", {"of": "inner"}, "compares support gradients; aggregate has none"),
        (None, "cagrad", {"c": -1.0}, "'cagrad': c must be a finite number of at least 0"),
        ([], "mean", {}, "no losses; expected at least one"),
        (torch.tensor(1.0), "mean", {}, r"expected a list or a tensor \(T,\) of losses, got \(\)"),
        ([torch.ones(2, requires_grad=True)], "mean", {}, r"got shape \(2,\) with requires_grad=T"),
        ([torch.ones(())], "mean", {}, r"got shape \(\) with requires_grad=False as loss 0"),
    ],
)
def test_errors_keep_gradients(losses, method: str, options, part: str) -> None:
    trunk, good = problem()
    given = good if losses is None else losses
    with pytest.raises(ValueError, match=part):
        fastmeta.aggregate(given, trunk.parameters(), method, **options)
    assert all(p.grad is None for p in trunk.parameters())
    fastmeta.aggregate(good, trunk.parameters())  # the graph is still there


def test_invalid_parameters_are_refused() -> None:
    trunk, losses = problem()
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        fastmeta.aggregate(losses, [torch.ones(2)])
    other = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="must have one dtype and one device, got"):
        fastmeta.aggregate(losses, [*trunk.parameters(), other])
    with pytest.raises(TypeError, match="colour"):
        fastmeta.aggregate(losses, trunk.parameters(), "cagrad", colour=1)
