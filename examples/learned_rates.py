"""Learning rates and weight decay per layer, learned through hundreds of training steps.

A perceptron is trained on few MNIST images. The logarithms of each layer's learning rate and weight
decay are trained by their gradient through the whole run; the outer loss is that of validation
images after the last step. The control is a grid of one rate and one decay, which may take as much
computation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from examples.common import Result, main, mnist
from fastmeta.adaptation import SGD, Groups

Params = dict[str, Tensor]
LAYERS = ["0", "2", "4"]
# What the search starts from, and the grid of the control.
LR, DECAY = 0.005, 1e-3
RATES = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2]
DECAYS = [0.0, 1e-3, 3e-3, 1e-2, 3e-2]


def network() -> nn.Module:
    """A perceptron of two hidden layers."""
    return nn.Sequential(
        nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)
    )


MODEL = network()


def loss_of(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(functional_call(MODEL, params, (x,)), y)


def run(seed: int, quick: bool) -> Result:
    """Learns the settings, and searches the grid."""
    generator = torch.Generator().manual_seed(seed)
    steps, outer_steps = (40, 6) if quick else (200, 30)
    x, y = mnist("train", 3000, generator)
    x, x_val, y, y_val = x[:1000], x[1000:], y[:1000], y[1000:]
    x_test, y_test = mnist("test", 1000 if quick else 10000, generator)

    def inner_loss(params: Params, meta: object, batch: Tensor) -> Tensor:
        return loss_of(params, x[batch], y[batch])

    def outer_loss(params: Params, meta: object) -> Tensor:
        return loss_of(params, x_val, y_val)

    def train(
        settings: Params, trial: int, truncate: int | None = None
    ) -> fastmeta.trajectory.Metagradient:
        """A run from the initialization and with the batches of `trial`."""
        draws = torch.Generator().manual_seed(1000 * seed + trial)
        torch.manual_seed(1000 * seed + trial)
        groups = {
            f"{layer}.*": SGD(
                lr=settings[f"lr {layer}"].exp(),
                momentum=0.9,
                weight_decay=settings[f"decay {layer}"].exp(),
            )
            for layer in LAYERS
        }
        return fastmeta.metagradient(
            inner_loss, outer_loss, dict(network().named_parameters()), settings,
            [torch.randint(len(x), (32,), generator=draws) for _ in range(steps)],
            optimizer=Groups(groups), memory="sqrt", truncate=truncate,
        )  # fmt: skip

    def start(lr: float, decay: float) -> Params:
        return {
            f"{name} {layer}": torch.tensor(max(value, 1e-9)).log().requires_grad_()
            for layer in LAYERS
            for name, value in (("lr", lr), ("decay", decay))
        }

    learned = start(LR, DECAY)
    optimizer = torch.optim.Adam(learned.values(), lr=0.2)
    path = []
    for outer_step in range(outer_steps):
        found = train(learned, trial=outer_step)
        for name, leaf in learned.items():
            leaf.grad = found.meta[name]
        optimizer.step()
        path.append({name: leaf.exp().item() for name, leaf in learned.items()})
    # The sweep takes about four times as long as a run.
    grid = [start(lr, decay) for lr in RATES for decay in DECAYS][: 4 * outer_steps]
    tuned = min(grid, key=lambda s: sum(train(s, trial, 1).outer_loss.item() for trial in (0, 1)))
    scores = {}
    for name, settings in {
        "learned per layer": learned,
        "tuned by grid": tuned,
        "as the search begins": start(LR, DECAY),
    }.items():
        finals = [train(settings, trial, 1).final_params for trial in range(1000, 1005)]
        with torch.no_grad():
            outputs = [functional_call(MODEL, final, (x_test,)) for final in finals]
        errors = [100 * (output.argmax(1) != y_test).float().mean().item() for output in outputs]
        losses = [F.cross_entropy(output, y_test).item() for output in outputs]
        scores[name] = {
            "test loss": sum(losses) / len(losses),
            "test error, %": sum(errors) / len(errors),
        }
    return Result(scores, path)


def draw(figure: Figure, path: list[dict[str, float]]) -> None:
    """The settings over outer steps."""
    for axes, kind in zip(figure.subplots(1, 2), ("lr", "decay"), strict=True):
        for layer in LAYERS:
            axes.plot([point[f"{kind} {layer}"] for point in path], label=f"layer {layer}")
        axes.set(
            yscale="log",
            xlabel="outer step",
            ylabel={"lr": "learning rate"}.get(kind, "weight decay"),
        )
    axes.legend()


COMPARE = ("learned per layer", "tuned by grid")

if __name__ == "__main__":
    main(run, draw, COMPARE)
