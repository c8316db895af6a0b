"""Weights from the tasks' losses: the mean of log losses, and SPSA."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from torch import Tensor

import fastmeta
from fastmeta import MetaLearner, _spsa
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Aggregation, Guarded, LogLoss, Mean, SPSAWeights
from fastmeta.gradients import TaskGradients
from fastmeta.metagrad import FirstOrder
from tests.helpers.nonfinite import corrupt
from tests.helpers.problems import loss, mlp, tasks
from tests.helpers.reference_loops import LR, reference_meta_gradients


def rows(losses: Tensor, state: dict[str, Tensor] | None = None) -> TaskGradients:
    """Task gradients that do not matter, with losses that do."""
    found = TaskGradients(torch.randn(len(losses), 3, dtype=torch.float64))
    return found.with_losses(losses, {} if state is None else state)


def learner(aggregation: Aggregation, dtype: torch.dtype = torch.float64) -> MetaLearner:
    return MetaLearner(
        mlp().to(dtype),
        loss,
        adaptation=SGD(LR),
        metagrad=FirstOrder(),
        aggregation=aggregation,
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        non_finite="skip",
    )


def test_log_loss_is_the_gradient_of_log_losses() -> None:
    model, batch = learner(LogLoss()), tasks(4)
    flat, result = model.meta_gradient(batch)
    gradients = reference_meta_gradients(model.module, batch, 1, second_order=False)
    inverse = 1 / result.query_loss
    expected = (inverse[:, None] * gradients).sum(0) / inverse.sum()
    torch.testing.assert_close(flat, expected, rtol=1e-9, atol=1e-12)


def test_log_loss_of_losses_without_an_inner_loop() -> None:
    theta = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    losses = theta.square()
    weights = fastmeta.aggregate(losses, [theta], "log-loss")
    losses = theta.square()
    (expected,) = torch.autograd.grad(losses.log().sum(), theta)
    torch.testing.assert_close(theta.grad, expected / losses.detach().reciprocal().sum())
    assert weights[0] > weights[1] > weights[2]


def test_small_losses_count_as_the_floor() -> None:
    found = LogLoss(floor=0.5).weights(rows(torch.tensor([0.0, -3.0, 0.1, 1.0])))
    torch.testing.assert_close(found, torch.tensor([2.0, 2, 2, 1]).double() / 7)


@pytest.mark.parametrize("mode", ["delta", "track"])
def test_steps_of_spsa_are_those_of_the_paper(mode) -> None:
    method, state, n = SPSAWeights(mode, 0.03, 0.4, rescale_every=3, seed=5), {}, 3
    v, before = [1 / n] * n, None
    for t in range(1, 8):
        losses = torch.rand(n, dtype=torch.float64) + 0.1
        found = method.weights(rows(losses, state))
        shares = [1 / x**2 for x in v]
        expected = torch.tensor([s / sum(shares) for s in shares], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        signs = method._rule._signs(t, torch.zeros(n, dtype=torch.float64)).tolist()
        assert set(signs) <= {-1.0, 1.0}
        beta, now = 0.4 / t ** (1 / 24), losses.tolist()
        first = now if before is None or mode == "delta" else before

        def j(sign: int, of: list[float], v=v, signs=signs, beta=beta) -> float:
            moved = [x + sign * beta * d for x, d in zip(v, signs, strict=True)]
            terms = [one / x**2 + math.log(x**2) for x, one in zip(moved, of, strict=True)]
            return sum(terms) / len(terms)

        slope = (j(1, first) - j(-1, now)) / (2 * beta)
        v = [x - 0.03 / t ** (1 / 6) * d * slope for x, d in zip(v, signs, strict=True)]
        if t % 3 == 0:
            norm = math.hypot(*v)
            v = [x / norm for x in v]
        before = now


def test_without_a_step_size_it_is_the_mean() -> None:
    method, state = SPSAWeights(alpha=0), {}
    for _ in range(3):
        found = method.weights(rows(torch.rand(5), state))
        torch.testing.assert_close(found, torch.full((5,), 0.2, dtype=torch.float64))


def test_the_objective_is_even_and_smallest_for_the_weights_of_log_losses() -> None:
    losses, share = torch.rand(6, dtype=torch.float64) + 0.1, torch.rand(6).double()
    v = torch.rand(6, dtype=torch.float64) + 0.1
    flipped = v * torch.tensor([1, -1, 1, -1, -1, 1])
    torch.testing.assert_close(
        _spsa.objective(v, losses, share), _spsa.objective(flipped, losses, share)
    )
    best = losses.sqrt().requires_grad_()
    (slope,) = torch.autograd.grad(_spsa.objective(best, losses, share), best)
    assert slope.abs().max() < 1e-12
    shares = best.detach().square().reciprocal()
    torch.testing.assert_close(shares / shares.sum(), LogLoss().weights(rows(losses)))


def test_the_estimate_is_unbiased_for_a_quadratic_objective(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix, linear = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    monkeypatch.setattr(_spsa, "objective", lambda v, *_: v @ matrix @ v + linear @ v)
    v, steps = torch.randn(4, dtype=torch.float64), []
    for signs in product([-1.0, 1.0], repeat=4):
        rule = _spsa.SPSA("delta", 1.0, 0.7, 100, 0)
        rule._signs = lambda step, like, signs=signs: torch.tensor(signs, dtype=like.dtype)
        steps.append(rule._step(v, 1, v, v, v))
    expected = (matrix + matrix.mT) @ v + linear
    torch.testing.assert_close(torch.stack(steps).mean(0), expected, rtol=1e-10, atol=1e-12)


def shares_after(losses: Tensor, steps: int, seeds: int, **options: float) -> Tensor:
    """Mean weights over the last half of the steps and over seeds."""
    total, count = torch.zeros(len(losses), dtype=torch.float64), 0
    for seed in range(seeds):
        method, state = SPSAWeights(seed=seed, **options), {}
        for step in range(steps):
            found = method.weights(rows(losses, state))
            if step >= steps // 2:
                total, count = total + found, count + 1
    return total / count


def test_published_defaults_do_not_weight_tasks_but_a_small_perturbation_does() -> None:
    losses = torch.tensor([0.3, 0.8, 1.5, 3.0], dtype=torch.float64)
    default = shares_after(losses, 1200, 4)
    small = shares_after(losses, 1200, 4, alpha=0.005, beta=0.05)
    assert (default - 0.25).abs().max() < 0.08  # noise of the signs
    log_loss = LogLoss().weights(rows(losses))
    assert (small - log_loss).abs().max() < 0.2
    assert (small.diff() < 0).all()


def test_equal_losses_prefer_no_place() -> None:
    found = shares_after(torch.ones(3, dtype=torch.float64), 600, 6, alpha=0.005, beta=0.05)
    torch.testing.assert_close(found, torch.full_like(found, 1 / 3), rtol=0.15, atol=0)


def test_places_of_tasks_that_are_left_out_keep_their_v() -> None:
    model = learner(SPSAWeights("track", 0.1, 0.3))
    batch = tasks(3)
    model.step(batch)
    before = model.state_dict()["aggregation"]["spsa_v"].clone()
    model.step(corrupt(batch, 1))
    state = model.state_dict()["aggregation"]
    assert state["spsa_v"][1] == before[1]
    assert (state["spsa_v"][[0, 2]] != before[[0, 2]]).all()
    assert all(part.isfinite().all() for part in state.values())


@pytest.mark.parametrize("guarded", [False, True])
def test_a_resumed_run_takes_the_same_steps(guarded: bool) -> None:
    def make() -> MetaLearner:
        method: Aggregation = SPSAWeights("track", 0.1, 0.3, rescale_every=2, seed=3)
        return learner(Guarded(method) if guarded else method, torch.float32)

    batches = [tasks(3, torch.float32) for _ in range(5)]
    whole, half, resumed = make(), make(), make()
    half.load_state_dict(copy.deepcopy(whole.state_dict()))
    for batch in batches:
        whole.step(batch)
    for batch in batches[:3]:
        half.step(batch)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in batches[3:]:
        resumed.step(batch)
    for name, value in whole.state_dict()["aggregation"].items():
        assert torch.equal(value, resumed.state_dict()["aggregation"][name])
    one, other = whole.module.state_dict(), resumed.module.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_state_of_another_aggregation_is_refused() -> None:
    model, batch = learner(SPSAWeights()), tasks(3)
    model.step(batch)
    with pytest.raises(ValueError, match=r"spsa_step, spsa_v, which aggregation\.Mean"):
        learner(Mean()).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="has the weights of 3 tasks, but the meta-batch has 2"):
        model.step(tasks(2))


def test_learners_may_share_an_aggregation_but_copies_have_their_own_state() -> None:
    shared, batch = SPSAWeights(alpha=0.1, beta=0.3), tasks(3)
    first, second = learner(shared), learner(shared)
    first.step(batch)
    assert not second.state_dict()["aggregation"]
    before = copy.deepcopy(first.state_dict()["aggregation"])
    first.with_components().meta_gradient(batch)
    fastmeta.learners.compare_precision(first, batch)
    after = first.state_dict()["aggregation"]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not first.with_components(aggregation=Mean()).state_dict()["aggregation"]


def test_what_keeps_state_or_needs_losses_says_so() -> None:
    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="spsa keeps spsa_v, spsa_losses, spsa_step between steps"):
        fastmeta.aggregate(theta.square(), [theta], "spsa")
    with pytest.raises(RuntimeError, match="the losses of the tasks are not known"):
        LogLoss().weights(TaskGradients(torch.randn(2, 3)))
