"""An objective discovered online (after FRODO): values of a random walk with changing rewards.

A table of values follows the targets of a recurrent network, which reads each episode backwards.
The network is trained in the same lifetime by the gradient, through the update of the table, of the
error on the next episode, as in Xu et al. 2020 (arXiv 2007.08433), here without a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

import fastmeta
from examples.common import Result, lines, main
from fastmeta.adaptation import SGD

Params = dict[str, Tensor]
STATES, HIDDEN, CHANGE = 5, 16, 40  # states, units, episodes from one change of rewards to the next
ALPHA, RATE, CONSISTENCY = 0.5, 3e-3, 0.1
RATES, LAMBDAS = [0.02, 0.05, 0.1, 0.2, 0.4], [0.0, 0.4, 0.7, 0.9, 1.0]  # grid of the control


class Episode(NamedTuple):
    """One of each lifetime, padded: `(lifetimes, time)`, but `value` `(lifetimes, STATES)`."""

    state: Tensor
    following: Tensor
    reward: Tensor
    discount: Tensor  # 0 at the end
    mask: Tensor
    value: Tensor  # the true one


def episodes(lifetimes: int, count: int, generator: torch.Generator) -> list[Episode]:
    """Walks from the middle until they leave the states.

    Leaving on the left has reward 0, on the right 1, which change places every `CHANGE` episodes.
    """
    found = []
    ends = torch.tensor([0.0, 1.0]).repeat(lifetimes, 1)
    for number in range(count):
        if number and number % CHANGE == 0:
            ends = ends.flip(1)
        moves = 2 * torch.randint(2, (lifetimes, 200), generator=generator) - 1
        path = torch.cat([torch.full((lifetimes, 1), STATES // 2), moves], 1).cumsum(1)
        inside = ((path >= 0) & (path < STATES)).long().cumprod(1)
        length = inside.sum(1, keepdim=True)
        path = path[:, : int(length.max()) + 1]
        steps = torch.arange(1, path.shape[1])
        last, mask = (steps == length).float(), (steps <= length).float()
        reward = last * torch.where(path[:, 1:] < 0, ends[:, :1], ends[:, 1:])
        share = torch.arange(1, STATES + 1) / (STATES + 1)
        value = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * share
        state = path.clamp(0, STATES - 1)
        found.append(Episode(state[:, :-1], state[:, 1:], reward, mask - last, mask, value))
    return found


Target = Callable[[Params, Episode, Tensor, Tensor], Tensor]


def td_lambda(eta: Params, episode: Episode, v: Tensor, following: Tensor) -> Tensor:
    """The lambda-return; `eta["lambda"]` is `(lifetimes,)`."""
    target, found = torch.zeros_like(v[:, 0]), []
    for t in reversed(range(v.shape[1])):
        mixed = following[:, t] + eta["lambda"] * (target - following[:, t])
        target = episode.reward[:, t] + episode.discount[:, t] * mixed
        found.append(target)
    return torch.stack(found[::-1], 1)


def learned(eta: Params, episode: Episode, v: Tensor, following: Tensor) -> Tensor:
    """The value and what a recurrent network, one of each lifetime, adds to it."""
    inputs = torch.stack([episode.reward, episode.discount, v, following], 2)
    driven = torch.baddbmm(eta["bias"], inputs, eta["inner"])
    hidden, found = torch.zeros_like(driven[:, :1]), []
    for t in reversed(range(v.shape[1])):
        hidden = torch.baddbmm(driven[:, t : t + 1], hidden, eta["recurrent"]).tanh()
        hidden = hidden * episode.mask[:, t, None, None]
        found.append(hidden)
    return v + (torch.cat(found[::-1], 1) @ eta["outer"])[:, :, 0]


def targets(target: Target, eta: Params, episode: Episode, table: Tensor) -> tuple[Tensor, Tensor]:
    """Values and their targets, of which only `eta` gets a gradient."""
    v = table.gather(1, episode.state)
    following = episode.discount * table.detach().gather(1, episode.following)
    return v, target(eta, episode, v.detach(), following)


def live(
    target: Target, eta: Params, alpha: Tensor | float, stream: list[Episode], rate: float
) -> Iterator[Tensor]:
    """The table of values `(lifetimes, STATES)` before each episode.

    Args:
        target: of each step of an episode.
        eta: its parameters, changed in place.
        alpha: step size of the table, `()` or `(lifetimes, 1)`.
        stream: the episodes.
        rate: of Adam, which trains `eta`.
    """

    def inner_loss(params: Tensor, eta: Params, episode: Episode) -> Tensor:
        v, goal = targets(target, eta, episode, params)
        return ((alpha * (goal - v).square()) * episode.mask).sum() / 2

    def outer_loss(params: Tensor, eta: Params, episode: Episode) -> Tensor:
        """Error of the values, and the heuristic that targets should agree with the next ones."""
        v, goal = targets(target, eta, episode, params)
        final = episode.reward.sum(1, keepdim=True)  # the return, as nothing is discounted
        after = torch.cat([goal[:, 1:], torch.zeros_like(goal[:, :1])], 1).detach()
        off = episode.reward + episode.discount * after - goal
        errors = (final - v).square() + CONSISTENCY * off.square()
        return (errors * episode.mask).sum()

    table = torch.zeros(len(stream[0].state), STATES)
    optimizer = torch.optim.Adam([leaf.requires_grad_() for leaf in eta.values()], lr=rate)
    for episode, after in pairwise(stream):
        yield table
        found = fastmeta.metagradient(
            inner_loss, outer_loss, table, eta, [episode], optimizer=SGD(lr=1.0),
            outer_batches={1: after},
        )  # fmt: skip
        table = found.final_params
        for name, leaf in eta.items():
            leaf.grad = found.meta[name]
        optimizer.step()


def network(lifetimes: int, generator: torch.Generator) -> Params:
    """The initial network of each lifetime, whose targets are the values themselves."""
    sizes = {"inner": (4, HIDDEN), "recurrent": (HIDDEN, HIDDEN)}
    found = {
        name: torch.randn(lifetimes, *size, generator=generator) / size[0] ** 0.5
        for name, size in sizes.items()
    }
    bias, outer = torch.zeros(lifetimes, 1, HIDDEN), torch.zeros(lifetimes, HIDDEN, 1)
    return {**found, "bias": bias, "outer": outer}


def errors(
    target: Target, eta: Params, alpha: Tensor | float, stream: list[Episode], rate: float
) -> Tensor:
    """Root mean squared errors `(episodes, settings, lifetimes)`, with `eta` of all settings."""
    lifetimes = len(stream[0].state)
    settings = len(next(iter(eta.values()))) // lifetimes
    repeated = [Episode(*(t.repeat(settings, 1) for t in each)) for each in stream]
    tables = torch.stack(list(live(target, eta, alpha, repeated, rate)))
    truth = torch.stack([episode.value for episode in stream[:-1]])[:, None]
    difference: Tensor = tables.unflatten(1, (settings, lifetimes)) - truth
    return difference.square().mean(3).sqrt()


def run(seed: int, quick: bool) -> Result:
    """Whole lifetimes of the discovered objective and of TD(lambda), on the same episodes."""
    generator = torch.Generator().manual_seed(seed)
    lifetimes, count = (4, 241) if quick else (4, 3001)
    stream = episodes(lifetimes, count, generator)
    lam, alpha = torch.cartesian_prod(torch.tensor(LAMBDAS), torch.tensor(RATES)).T
    lam, alpha = (x.repeat_interleave(lifetimes) for x in (lam, alpha))
    controls = errors(td_lambda, {"lambda": lam}, alpha[:, None], stream, 0.0)
    best = controls.mean((0, 2)).argmin()
    found = {
        "discovered objective": errors(learned, network(lifetimes, generator), ALPHA, stream, RATE)[
            :, 0
        ],
        "TD(lambda), tuned": controls[:, best],
        "TD(0), tuned": controls[:, controls[:, : len(RATES)].mean((0, 2)).argmin()],
    }
    last = count * 3 // 4 // (2 * CHANGE) * 2 * CHANGE  # the last quarter, from a change on
    scores = {
        name: {
            "error, whole life": error.mean().item(),
            "error, last quarter": error[last:].mean().item(),
        }
        for name, error in found.items()
    }
    ends = {name: error[last:].unflatten(0, (-1, CHANGE)) for name, error in found.items()}
    curves = {name: list(enumerate(error.mean((0, 2)).tolist())) for name, error in ends.items()}
    return Result(scores, curves)


def draw(figure: Figure, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Errors over the episodes since a change of rewards."""
    lines(figure, curves, "episodes since the rewards changed", "error of the values")


COMPARE = ("discovered objective", "TD(lambda), tuned")

if __name__ == "__main__":
    main(run, draw, COMPARE)
