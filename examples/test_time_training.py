"""Test-time training on a stream: a model that learns while it reads.

A module of Python's library arrives in chunks. The model predicts each chunk and then takes a
gradient step on it. Its initial weights and the step sizes are trained by the gradient of the
summed losses before each update, through all updates, as in TTT-E2E (arXiv 2512.23675).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call

import fastmeta
from examples.common import Result, language_model, lines, main, python_sources
from fastmeta.adaptation import SGD, Groups

Params = dict[str, Tensor]
Rates = dict[str, float]
CHUNKS, CHUNK, WINDOW = 8, 256, 8
RATES = [0.0, 0.03, 0.1, 0.2, 0.4, 0.8]  # grid of the controls


MODEL = language_model(WINDOW)


def loss_of(params: Params, meta: object, chunk: Tensor) -> Tensor:
    """Mean loss of the codes of a chunk, in nats."""
    windows = chunk.unfold(0, WINDOW + 1, 1)
    return F.cross_entropy(functional_call(MODEL, params, (windows[:, :-1],)), windows[:, -1])


def mean_loss(params: Params, meta: object, chunk: Tensor) -> Tensor:
    """Its share of the mean over a stream."""
    return loss_of(params, meta, chunk) / CHUNKS


def chunks(text: Tensor) -> list[Tensor]:
    """Chunks of a text, each with the window before its first code."""
    return list(text[: CHUNKS * CHUNK + WINDOW].unfold(0, CHUNK + WINDOW, CHUNK))


def run(seed: int, quick: bool) -> Result:
    """Trains through the updates and without, and reads new modules."""
    generator = torch.Generator().manual_seed(seed)
    outer_steps, held_out = (20, 3) if quick else (250, 10)
    sources = python_sources(smallest=CHUNKS * CHUNK + WINDOW)
    order = torch.randperm(len(sources), generator=generator).tolist()
    streams = [sources[i] for i in order[held_out:]]
    new = [chunks(sources[i]) for i in order[:held_out]]

    def sample() -> list[Tensor]:
        """Chunks of a random part of a random module."""
        text = streams[int(torch.randint(len(streams), (), generator=generator))]
        first = torch.randint(len(text) - CHUNKS * CHUNK - WINDOW + 1, (), generator=generator)
        return chunks(text[int(first) :])

    def ordinary(params: Params, steps: int, lr: float) -> Params:
        """Trained on streams without updates."""
        params = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
        optimizer = torch.optim.Adam(params.values(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            windows = torch.cat([chunk.unfold(0, WINDOW + 1, 1) for chunk in sample()])
            output = functional_call(MODEL, params, (windows[:, :-1],))
            F.cross_entropy(output, windows[:, -1]).backward()
            optimizer.step()
        return params

    def through_updates(params: Params, steps: int, lr: float) -> tuple[Params, Rates]:
        """Trained through the updates, as are their step sizes."""
        params = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
        log_lr = {n: torch.tensor(0.2).log().requires_grad_() for n in params}
        optimizer = torch.optim.Adam(params.values(), lr=lr)
        optimizer.add_param_group({"params": list(log_lr.values()), "lr": 0.03})
        for _ in range(steps):
            stream = sample()
            sgd = Groups({n: SGD(lr=rate.exp()) for n, rate in log_lr.items()})
            found = fastmeta.metagradient(
                loss_of, mean_loss, params, log_lr, stream, optimizer=sgd,
                outer_batches=dict(enumerate(stream)),
            )  # fmt: skip
            for name, p in params.items():
                p.grad = found.params[name]
                log_lr[name].grad = found.meta[name]
            optimizer.step()
        return params, {n: rate.exp().item() for n, rate in log_lr.items()}

    def read(params: Params, rates: Rates, texts: list[list[Tensor]]) -> Tensor:
        """Loss of each chunk before the update on it, mean over texts."""
        total = torch.zeros(CHUNKS)
        for stream in texts:
            weights = params
            for k, chunk in enumerate(stream):
                leaves = {n: p.detach().requires_grad_() for n, p in weights.items()}
                value = loss_of(leaves, None, chunk)
                grads = torch.autograd.grad(value, list(leaves.values()))
                pairs = zip(leaves.items(), grads, strict=True)
                weights = {n: p - rates[n] * g for (n, p), g in pairs}
                total[k] += value.item() / len(texts)
        return total

    def tuned(params: Params) -> Rates:
        """One step size for all, the best of the grid on training texts."""
        grid = [dict.fromkeys(params, rate) for rate in RATES]
        return min(grid, key=lambda rates: read(params, rates, tuning).mean().item())

    torch.manual_seed(seed)
    start = ordinary(dict(language_model(WINDOW).named_parameters()), 6 * outer_steps, lr=3e-3)
    learned, rates = through_updates(start, outer_steps, lr=1e-3)
    plain = ordinary(start, outer_steps, lr=1e-3)  # as many streams
    longer = ordinary(start, 4 * outer_steps, lr=1e-3)  # about as much time
    tuning = [sample() for _ in range(held_out)]
    none = dict.fromkeys(learned, 0.0)
    curves = {
        "trained through the updates": read(learned, rates, new),
        "ordinary weights, adapted": read(plain, tuned(plain), new),
        "ordinary weights, trained longer, adapted": read(longer, tuned(longer), new),
        "ordinary weights, trained longer, no adaptation": read(longer, none, new),
        "trained through the updates, no adaptation": read(learned, none, new),
    }
    scores = {
        name: {
            "loss of new modules": curve.mean().item(),
            "of their last quarter": curve[-2:].mean().item(),
        }
        for name, curve in curves.items()
    }
    return Result(scores, curves)


def draw(figure: Figure, curves: dict[str, Tensor]) -> None:
    """Losses along the stream."""
    points = {name: list(enumerate(curve.tolist(), 1)) for name, curve in curves.items()}
    lines(figure, points, f"chunk of {CHUNK} characters", "nats per character")


COMPARE = ("trained through the updates", "ordinary weights, adapted")

if __name__ == "__main__":
    main(run, draw, COMPARE)
