"""Learning rates by forward differentiation: memory that does not grow with the inner steps.

A perceptron adapts to sine tasks by many steps, with a learning rate per tensor that is learned.
The reverse sweep keeps the steps; a Jacobian-vector product through the inner loop keeps nothing.
It takes one per rate, or one in a random direction, whose product with it is an unbiased estimate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jvp, vmap

import fastmeta
from examples.common import Result, lines, main
from fastmeta import TaskBatch
from fastmeta.adaptation import SGD, Groups
from fastmeta.data import SineTasks
from fastmeta.tuning.memory import peak_bytes

Params = dict[str, Tensor]
TASKS, SHOTS = 8, 10
MODEL = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))


def loss_of(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Sum over tasks `(T, n, 1)`, each with its own parameters."""

    def of_task(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(functional_call(MODEL, params, (x,)), y)

    return vmap(of_task)(params, x, y).sum()


def adapted(rates: Params, start: Params, batch: TaskBatch, steps: int) -> Tensor:
    """The mean query loss after the inner loop, in operations with forward derivatives."""
    params = start
    for _ in range(steps):
        grads = grad(loss_of)(params, batch.support_x, batch.support_y)
        params = {name: p - rates[name].exp() * grads[name] for name, p in params.items()}
    return loss_of(params, batch.query_x, batch.query_y) / len(batch.query_x)


def reverse(rates: Params, start: Params, batch: TaskBatch, steps: int) -> Params:
    """By the reverse sweep, exact."""

    def inner_loss(params: Params, rates: Params, _: None) -> Tensor:
        return loss_of(params, batch.support_x, batch.support_y)

    def outer_loss(params: Params, rates: Params) -> Tensor:
        return loss_of(params, batch.query_x, batch.query_y) / len(batch.query_x)

    rates = {name: rate.detach().requires_grad_() for name, rate in rates.items()}
    found: Params = fastmeta.metagradient(
        inner_loss, outer_loss, start, rates, [None] * steps,
        optimizer=Groups({name: SGD(lr=rate.exp()) for name, rate in rates.items()}),
    ).meta  # fmt: skip
    return found


def forward(rates: Params, start: Params, batch: TaskBatch, steps: int) -> Params:
    """By one Jacobian-vector product per rate, side by side, exact."""
    found: Params = jacfwd(partial(adapted, start=start, batch=batch, steps=steps))(rates)
    return found


def one_direction(rates: Params, start: Params, batch: TaskBatch, steps: int) -> Params:
    """By one Jacobian-vector product in a random direction of signs, unbiased."""
    along = {name: torch.randint(2, ()) * 2.0 - 1 for name in rates}
    inner = partial(adapted, start=start, batch=batch, steps=steps)
    _, slope = jvp(inner, (rates,), (along,))[:2]
    return {name: slope * direction for name, direction in along.items()}


METHODS: dict[str, Callable[[Params, Params, TaskBatch, int], Params]] = {
    "one JVP per rate": forward,
    "reverse sweep": reverse,
    "one JVP in a random direction": one_direction,
}


def run(seed: int, quick: bool) -> Result:
    """Learns the rates by each method on the same tasks."""
    steps, outer_steps, tests = (5, 6, 2) if quick else (50, 30, 10)
    lengths = [3, 6, 12] if quick else [10, 50, 100]
    tasks = SineTasks(TASKS, SHOTS, SHOTS, seed=seed)
    torch.manual_seed(seed)
    MODEL.apply(lambda part: part.reset_parameters() if isinstance(part, nn.Linear) else None)
    start = {n: p.detach().expand(TASKS, *p.shape) for n, p in MODEL.named_parameters()}
    begin = {name: torch.tensor(0.01).log() for name in start}

    def score(rates: Params) -> float:
        """The mean query loss of new tasks."""
        new = [adapted(rates, start, tasks[10**6 + i], steps).item() for i in range(tests)]
        return sum(new) / tests

    scores = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, method in METHODS.items():
        rates = {n: rate.clone() for n, rate in begin.items()}
        optimizer = torch.optim.Adam(rates.values(), lr=0.05)
        used = time.process_time()
        for outer_step in range(outer_steps):
            for n, found in method(rates, start, tasks[outer_step], steps).items():
                rates[n].grad = found
            optimizer.step()
        used = time.process_time() - used
        curves[name] = [
            (k, peak_bytes(partial(method, rates, start, tasks[0], k), torch.device("cpu")) / 2**20)
            for k in lengths
        ]
        scores[name] = {
            "query loss of new tasks": score(rates),
            f"MiB with {lengths[0]} steps": curves[name][0][1],
            f"MiB with {lengths[-1]} steps": curves[name][-1][1],
            "CPU ms per outer step": 1000 * used / outer_steps,
        }
    scores["rates as the search begins"] = {"query loss of new tasks": score(begin)}
    return Result(scores, curves)


def draw(figure: Figure, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Peak memory over the number of inner steps."""
    lines(figure, curves, "inner steps", "peak memory, MiB")


COMPARE = ("one JVP per rate", "reverse sweep")

if __name__ == "__main__":
    main(run, draw, COMPARE)
