"""The learned aggregation."""

from __future__ import annotations

import pytest
import torch

from examples import learned_aggregation as example
from fastmeta.aggregation import MGDA, Aggregation, Guarded, Mean
from fastmeta.gradients import TaskGradients


def gradients(rows: torch.Tensor, losses: torch.Tensor | None = None) -> TaskGradients:
    losses = torch.rand(len(rows)) + 0.5 if losses is None else losses
    return TaskGradients(rows).with_losses(losses, {})


def random_network(scale: float = 1.0) -> example.Learned:
    learned = example.Learned()
    for p in learned.parts.parameters():
        torch.nn.init.normal_(p, std=scale)
    return learned


def test_it_begins_as_the_mean() -> None:
    given = gradients(torch.randn(3, 7))
    torch.testing.assert_close(example.Learned().weights(given), Mean().weights(given))


def test_weights_follow_their_task() -> None:
    """Permuted tasks have permuted weights, also in a second step; one task has the step size."""
    learned, rows, losses = random_network(), torch.randn(4, 9), torch.rand(4) + 0.5
    order = torch.tensor([2, 0, 3, 1])
    plain, permuted = gradients(rows, losses), gradients(rows[order], losses[order])
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(
                learned.weights(permuted), learned.weights(plain)[order], rtol=1e-4, atol=1e-5
            )
        single = gradients(rows[:1])
        weight = learned.weights(single)
        torch.testing.assert_close(
            weight, learned.size(single.state["shared"][0])[0].exp(), rtol=1e-5, atol=1e-6
        )


def test_the_guard() -> None:
    """A step that conflicts is MGDA's; others are the network's, and help every task."""
    taken = {True: 0, False: 0}
    for _ in range(20):
        learned, rows = random_network(), torch.randn(2, 3)
        rows[1] *= 10
        with torch.no_grad():
            own = learned.weights(gradients(rows, torch.ones(2)))
            guarded = Guarded(learned, c=0.0).weights(gradients(rows, torch.ones(2)))
        helps = bool((rows @ (own @ rows) >= 0).all())
        taken[helps] += 1
        expected = own if helps else MGDA().weights(gradients(rows))
        torch.testing.assert_close(guarded, expected)
    assert min(taken.values()) > 0


class Recorder(Aggregation):
    """Keeps what an aggregation gets and returns."""

    needs_losses = True

    def __init__(self, inner: Aggregation) -> None:
        self.inner = inner
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def weights(self, gradients: TaskGradients) -> torch.Tensor:
        self.calls.append((self.inner.weights(gradients), gradients.outer))
        return self.calls[-1][0]


def test_the_derivative_through_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-rate sum_{j < k} <g_k, g_ij> dw_ij`, for step k's mean gradient g_k."""
    steps, rate, learned = 4, 0.3, random_network(0.1)
    x, y = torch.rand(6, 196), torch.randint(5, (6, 2))
    start = torch.randn(example.LAYOUT.size) / 10
    batches = [torch.randint(6, (3,)) for _ in range(steps)]
    given = example.Problem(x, y, x, y, start, batches)
    trained = torch.optim.SGD(learned.parts.parameters(), lr=0.0)
    monkeypatch.setattr(example, "UNROLL", steps + 1)  # no step yet
    recorder = Recorder(learned)
    example.optimize(given, recorder, [rate] * steps, trained)
    objective = torch.zeros(())
    for k in range(steps):
        for weights, rows in recorder.calls[:k]:
            objective = objective - rate * weights @ (rows @ recorder.calls[k][1].mean(0))
    expected = torch.autograd.grad(objective, list(learned.parts.parameters()))
    monkeypatch.setattr(example, "UNROLL", steps)
    example.optimize(given, learned, [rate] * steps, trained)
    for p, gradient in zip(learned.parts.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-6)
