"""A learned aggregation of two objectives, with a guard: in the spirit of ML2O, in miniature.

A network recognizes two overlapping digits, of which one is darker. The weights of both objectives'
gradients and the size of the step come from recurrent networks, one for each objective and one
shared, which are trained through the steps on other digits. `Guarded` refuses steps that conflict
with an objective. The design is ours: the equations of ML2O (Yang, Yang, Tang 2023, arXiv
2311.00559) were not available to us.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from examples.common import Result, lines, main, mnist
from fastmeta.aggregation import MGDA, Aggregation, CAGrad, Guarded, Mean
from fastmeta.gradients import FlatLayout, TaskGradients

BATCH, UNROLL, HIDDEN, EVERY = 64, 20, 16, 10
RATES = [0.2, 0.4, 0.8, 1.6, 3.2]  # grid of the controls, constant or decaying to 0


class Learned(Aggregation):
    """Weights from the history of gradient norms, cosines and losses; at first those of `Mean`."""

    needs_losses = True
    state_names = ("own", "shared")

    def __init__(self) -> None:
        self.own, self.shared = nn.LSTMCell(3, HIDDEN), nn.LSTMCell(HIDDEN, HIDDEN)
        self.score, self.size = nn.Linear(2 * HIDDEN, 1), nn.Linear(HIDDEN, 1)
        self.parts = nn.ModuleList([self.own, self.shared, self.score, self.size])
        for layer in (self.score, self.size):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @override
    def weights(self, gradients: TaskGradients) -> Tensor:
        """`exp(size) softmax(score)`, differentiable in the parameters of the networks."""
        gram, state = gradients.gram(), gradients.state
        norms = gram.diagonal().sqrt().clamp_min(1e-12)
        cosines = gram.mean(1) / norms / gram.mean().sqrt().clamp_min(1e-12)  # to the mean
        features = torch.stack([norms.log(), cosines, gradients.losses.log()], 1)
        own = self.own(features, state["own"].unbind() if "own" in state else None)
        before = state["shared"].unbind() if "shared" in state else None
        shared = self.shared(own[0].mean(0, keepdim=True), before)
        state["own"], state["shared"] = torch.stack(own), torch.stack(shared)
        both = torch.cat([own[0], shared[0].expand_as(own[0])], 1)
        size: Tensor = self.size(shared[0])[0]
        score: Tensor = self.score(both)[:, 0]
        return size.exp() * score.softmax(0)


class Problem(NamedTuple):
    """Images `(n, 196)` with labels `(n, 2)`, the start of training and its batches."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    start: Tensor
    batches: list[Tensor]


def network() -> nn.Module:
    """One hidden layer for both digits."""
    return nn.Sequential(nn.Linear(196, 32), nn.Tanh(), nn.Linear(32, 10), nn.Unflatten(1, (2, 5)))


MODEL = network()
LAYOUT = FlatLayout.of(list(MODEL.parameters()))


def losses(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Of both digits `(2,)`."""
    names = [name for name, _ in MODEL.named_parameters()]
    params = dict(zip(names, LAYOUT.views(flat), strict=True))
    logits = functional_call(MODEL, params, (x,)).movedim(1, 2)
    return F.cross_entropy(logits, y, reduction="none").mean(0)


def problem(x: Tensor, y: Tensor, steps: int, generator: torch.Generator) -> Problem:
    """New images of overlapping digits, of random contrast, and a new start."""
    count, tested = 1000, 500
    left, right = torch.randint(len(x), (2, count + tested), generator=generator)
    images = (x * 0.3081 + 0.1307).unflatten(1, (28, 28))
    contrast = float(0.2 + 0.8 * torch.rand((), generator=generator))
    first, second = images[left].roll(-4, 2), contrast * images[right].roll(4, 2)
    both = F.avg_pool2d(torch.maximum(first, second), 2).flatten(1)
    labels = torch.stack([y[left], y[right]], 1) % 5
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    start = torch.cat([p.detach().flatten() for p in network().parameters()])
    batches = [torch.randint(count, (BATCH,), generator=generator) for _ in range(steps)]
    return Problem(both[:count], labels[:count], both[count:], labels[count:], start, batches)


def optimize(
    given: Problem,
    aggregation: Aggregation,
    rates: list[float],
    trained: torch.optim.Optimizer | None = None,
) -> Tensor:
    """Test losses of both digits every `EVERY` steps, from the start to the end, `(n, 2)`.

    Args:
        given: the problem.
        aggregation: of the two gradients.
        rates: the learning rate of each step.
        trained: of the networks of the aggregation, which then are trained by the derivative of
            the mean training losses of `UNROLL` steps; through the weights, not the gradients.
    """
    flat, objective = given.start, torch.zeros(())
    path = [losses(flat, given.x_test, given.y_test).detach()]
    state: dict[str, Tensor] = {}
    for step, (batch, rate) in enumerate(zip(given.batches, rates, strict=True), 1):
        leaf = flat.detach().requires_grad_()
        found = losses(leaf, given.x[batch], given.y[batch])
        rows = torch.stack(
            [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in found]
        )
        gradients = TaskGradients(rows).with_losses(found.detach(), state)
        with torch.set_grad_enabled(trained is not None):
            objective = objective + rows.mean(0) @ flat  # its gradient is that of the mean loss
            flat = flat - rate * aggregation.weights(gradients) @ rows
        if trained is not None and step % UNROLL == 0:
            trained.zero_grad()
            objective.backward()
            trained.step()
            flat, objective = flat.detach(), torch.zeros(())
            state = {name: value.detach() for name, value in state.items()}
        if step % EVERY == 0:
            path.append(losses(flat.detach(), given.x_test, given.y_test).detach())
    return torch.stack(path)


def run(seed: int, quick: bool) -> Result:
    """Trains the aggregation on digits 0 to 4, tunes the others there, and tests on 5 to 9."""
    generator = torch.Generator().manual_seed(seed)
    steps, training, tuning, testing = (40, 4, 1, 2) if quick else (100, 50, 4, 8)
    x, y = mnist("train", 3000 if quick else 20000, generator)
    known = (x[y < 5], y[y < 5])
    held_out = [problem(x[y >= 5], y[y >= 5], steps, generator) for _ in range(testing)]
    tuned_on = [problem(*known, steps, generator) for _ in range(tuning)]
    schedules = [[rate] * steps for rate in RATES]
    schedules += [
        [rate * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)] for rate in RATES
    ]

    def tuned(aggregation: Aggregation, among: list[list[float]]) -> list[float]:
        def loss(rates: list[float]) -> float:
            return sum(optimize(each, aggregation, rates)[-1].mean().item() for each in tuned_on)

        return min(among, key=loss)

    torch.manual_seed(seed)
    learned = Learned()
    rates = tuned(Mean(), schedules[: len(RATES)])
    adam = torch.optim.Adam(learned.parts.parameters(), lr=3e-3)
    for _ in range(training):
        optimize(problem(*known, steps, generator), learned, rates, adam)
    controls = {"Mean": Mean(), "MGDA": MGDA(), "CAGrad": CAGrad()}
    methods: dict[str, tuple[Aggregation, list[float]]] = {
        "learned, guarded": (Guarded(learned, c=0.0), rates),
        "learned": (learned, rates),
        **{name: (rule, tuned(rule, schedules)) for name, rule in controls.items()},
    }
    scores, curves = {}, {}
    for name, (aggregation, rates) in methods.items():
        paths = torch.stack([optimize(each, aggregation, rates) for each in held_out])
        final = paths[:, -1]
        scores[name] = {
            "mean loss": final.mean().item(),
            "loss of the worse digit": final.amax(1).mean().item(),
        }
        curves[name] = [(EVERY * k, loss) for k, loss in enumerate(paths.mean((0, 2)).tolist())]
    return Result(scores, curves)


def draw(figure: Figure, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Mean losses over steps."""
    lines(figure, curves, "step", "test loss, mean of both digits")


COMPARE = ("learned, guarded", "Mean")

if __name__ == "__main__":
    main(run, draw, COMPARE)
