"""Learning to reweight examples (Ren et al. 2018): MNIST with 40 % wrong labels.

Each training image has a weight. The weights are learned by their gradient through whole training
runs, whose last loss is on a few images with right labels. The test is a new training run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from examples.common import Result, histogram, main, mnist
from fastmeta.adaptation import SGD

Params = dict[str, Tensor]
OPTIMIZER = SGD(lr=0.1, momentum=0.9)


def network() -> nn.Module:
    """A perceptron of 7 x 7 pixels."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.AvgPool2d(4), nn.Flatten(),
        nn.Linear(49, 64), nn.Tanh(), nn.Linear(64, 10),
    )  # fmt: skip


def run(seed: int, quick: bool) -> Result:
    """Learns the weights, and trains with them and with the controls."""
    generator = torch.Generator().manual_seed(seed)
    images, trusted, steps, outer_steps = (400, 100, 10, 10) if quick else (1000, 100, 30, 60)
    x, right = mnist("train", images + trusted, generator)
    x_val, y_val = x[images:], right[images:]
    x, right = x[:images], right[:images]
    x_test, y_test = mnist("test", 1000 if quick else 10000, generator)
    wrong = torch.rand(images, generator=generator) < 0.4
    shift = torch.randint(1, 10, (images,), generator=generator)
    y = torch.where(wrong, (right + shift) % 10, right)
    model = network()

    def inner_loss(params: Params, weights: Tensor, batch: Tensor) -> Tensor:
        losses = F.cross_entropy(
            functional_call(model, params, (x[batch],)), y[batch], reduction="none"
        )
        return (weights[batch] * losses).mean()

    def outer_loss(params: Params, weights: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, params, (x_val,)), y_val)

    def batches(count: int) -> list[Tensor]:
        return [torch.randperm(images, generator=generator)[:100] for _ in range(count)]

    logits = torch.zeros(images, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(outer_steps):
        params = dict(network().named_parameters())  # a new initialization
        weights = 2 * logits.sigmoid()
        found = fastmeta.metagradient(
            inner_loss, outer_loss, params, weights, batches(steps), optimizer=OPTIMIZER
        )
        optimizer.zero_grad()
        weights.backward(found.meta)
        optimizer.step()

    def accuracy(weights: Tensor, extra: bool = False) -> float:
        """Of a new run with these weights, in percent."""

        def loss(params: Params, weights: Tensor, batch: Tensor) -> Tensor:
            both = inner_loss(params, weights, batch) + outer_loss(params, weights)
            return both / 2 if extra else inner_loss(params, weights, batch)

        torch.manual_seed(seed)
        start = dict(network().named_parameters())
        order = torch.Generator().manual_seed(seed)
        run = [torch.randperm(images, generator=order)[:100] for _ in range(10 * steps)]
        final = fastmeta.metagradient(
            loss, outer_loss, start, weights, run, optimizer=OPTIMIZER, truncate=1
        ).final_params
        right = functional_call(model, final, (x_test,)).argmax(1) == y_test
        return 100 * float(right.double().mean())

    learned, uniform = 2 * logits.detach().sigmoid(), torch.ones(images)
    clean = (~wrong).float()
    return Result(
        {
            "learned weights": {
                "test accuracy, %": accuracy(learned),
                "AUC, right against wrong labels": float(roc_auc_score(clean, learned)),
            },
            "learned weights and trusted images": {"test accuracy, %": accuracy(learned, True)},
            "uniform weights": {"test accuracy, %": accuracy(uniform)},
            "uniform weights and trusted images": {"test accuracy, %": accuracy(uniform, True)},
            "trusted images only": {"test accuracy, %": accuracy(0 * uniform, True)},
            "right labels only": {"test accuracy, %": accuracy(clean)},
        },
        (learned, wrong),
    )


def draw(figure: Figure, picture: tuple[Tensor, Tensor]) -> None:
    """The learned weights of right and wrong labels."""
    learned, wrong = picture
    values = {"right labels": learned[~wrong], "wrong labels": learned[wrong]}
    histogram(figure, values, "learned weight", "training images")


COMPARE = ("learned weights", "uniform weights")

if __name__ == "__main__":
    main(run, draw, COMPARE)
