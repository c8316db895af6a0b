"""Dataset distillation (Wang et al. 2018): ten images on which MNIST is learned.

Ten images, one per digit, and a learning rate are trained by their gradient through the training
of newly initialized networks on them, from the mean images; the outer loss is that of real images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from examples.common import Result, main, mnist
from fastmeta.adaptation import SGD

Params = dict[str, Tensor]
STEPS = 12
RATES = [0.003, 0.01, 0.03, 0.1, 0.3]  # grid of the controls


def network() -> nn.Module:
    """A perceptron of 14 x 14 pixels."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(196, 64), nn.Tanh(), nn.Linear(64, 10),
    )  # fmt: skip


MODEL, DIGITS = network(), torch.arange(10)


def inner_loss(params: Params, meta: dict[str, Tensor], batch: None) -> Tensor:
    """Of the ten images."""
    return F.cross_entropy(functional_call(MODEL, params, (meta["images"],)), DIGITS)


def run(seed: int, quick: bool) -> Result:
    """Distills, and compares with real images."""
    generator = torch.Generator().manual_seed(seed)
    count, outer_steps, trials = (2000, 60, 2) if quick else (10000, 600, 10)
    x, y = mnist("train", count, generator)
    x_test, y_test = mnist("test", 1000 if quick else 10000, generator)
    real = torch.stack([x[y == digit][0] for digit in range(10)])
    means = torch.stack([x[y == digit].mean(0) for digit in range(10)])

    def outer_loss(params: Params, meta: dict[str, Tensor], batch: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(MODEL, params, (x[batch],)), y[batch])

    meta = {"images": means.clone(), "log_lr": torch.tensor(0.1).log()}
    leaves = [t.requires_grad_() for t in meta.values()]
    optimizer = torch.optim.Adam(
        [{"params": [leaves[0]], "lr": 0.02}, {"params": [leaves[1]], "lr": 0.01}]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, outer_steps)
    for _ in range(outer_steps):
        found = fastmeta.metagradient(
            inner_loss, outer_loss, dict(network().named_parameters()), meta, [None] * STEPS,
            optimizer=SGD(lr=meta["log_lr"].exp()),
            outer_batches={STEPS: torch.randint(count, (256,), generator=generator)},
        )  # fmt: skip
        for leaf, grad in zip(leaves, found.meta.values(), strict=True):
            leaf.grad = grad
        # A few gradients are very large: at the edge of stability every step adds a factor.
        nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        schedule.step()

    def accuracy(images: Tensor, lr: float, x: Tensor, y: Tensor) -> float:
        """Mean over new networks trained on `images`, in percent."""
        total = 0.0
        for trial in range(trials):
            torch.manual_seed(1000 * seed + trial)
            net = network()
            steps = torch.optim.SGD(net.parameters(), lr=lr)
            for _ in range(STEPS):
                steps.zero_grad()
                F.cross_entropy(net(images), DIGITS).backward()
                steps.step()
            total += (net(x).argmax(1) == y).float().mean().item()
        return 100 * total / trials

    def tuned(images: Tensor) -> float:
        """With the learning rate that is best on training images."""
        best = max(RATES, key=lambda lr: accuracy(images, lr, x[:2000], y[:2000]))
        return accuracy(images, best, x_test, y_test)

    learned = meta["images"].detach()
    lr = meta["log_lr"].exp().item()
    scores = {
        "distilled images": accuracy(learned, lr, x_test, y_test),
        "random real images": tuned(real),
        "mean images": tuned(means),
    }
    rows = {name: {"test accuracy, %": value} for name, value in scores.items()}
    return Result(rows, torch.stack([real, means, learned]))


def draw(figure: Figure, pictures: Tensor) -> None:
    """Real, mean and distilled images, each row with its own range of grey."""
    axes = figure.subplots(3, 10)
    for row, images in enumerate(pictures):
        for column, image in enumerate(images):
            axes[row, column].imshow(image.view(28, 28).numpy(), cmap="gray")
            axes[row, column].set_axis_off()
    for row, title in enumerate(("real", "mean", "distilled")):
        axes[row, 0].set_title(title, fontsize="small", loc="left")


COMPARE = ("distilled images", "random real images")

if __name__ == "__main__":
    main(run, draw, COMPARE)
