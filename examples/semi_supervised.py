"""Semi-supervised learning by meta-gradient (MetaSemi): MNIST with 100 labels.

The pseudo-labels of images without labels, the model's own predictions, are moved so that a step
towards them would lower the loss of the labelled images (Zhang et al. 2021, arXiv 2007.03966). The
derivative of that loss with respect to the pseudo-labels is one Jacobian-vector product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from examples.common import Result, lines, main, mnist

Params = dict[str, Tensor]
BATCH, MOMENTUM, DECAY = 64, 0.9, 1e-4
# By method: learning rate, whether labelled images are mixed with others, whether labels are moved.
METHODS = {
    "MetaSemi": (0.1, True, True),
    "MetaSemi without mix-up": (0.03, False, True),
    "mix-up only": (0.1, True, False),
    "labels only": (0.03, False, False),
}


def network() -> nn.Module:
    """A small convolutional network."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 10),
    )  # fmt: skip


MODEL = network()


def predictions(params: Params, x: Tensor) -> Tensor:
    """Probabilities of the digits `(n, 10)`."""
    logits: Tensor = functional_call(MODEL, params, (x,))
    return logits.softmax(1)


def labelled_loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of the labelled images."""
    return F.cross_entropy(functional_call(MODEL, params, (x,)), y)


def consistency(params: Params, pseudo: Tensor, x: Tensor) -> Tensor:
    """Mean squared distance of the predictions from the pseudo-labels."""
    return (predictions(params, x) - pseudo).square().sum(1).mean()


def moved_labels(params: Params, x: Tensor, labelled: tuple[Tensor, Tensor], lr: float) -> Tensor:
    """Pseudo-labels `(n, 10)` of the images `x`: predictions, moved by the meta-gradient.

    The step `theta' = theta - lr grad sum |p(x) - y|^2` has `dL(theta') / dy = 2 lr J g` at `y =
    p(x)`, with J the Jacobian of the predictions and g the gradient of the labelled loss L. Where
    the authors take a central difference along g, this is the exact product.
    """
    gradient = grad(labelled_loss)(params, *labelled)
    p, change = jvp(lambda params: predictions(params, x), (params,), (gradient,))[:2]
    # Distributions again: a change sums to 0, so that some entry of each row stays positive.
    return F.normalize((p - 2 * lr * change).relu(), p=1, dim=1)


def run(seed: int, quick: bool) -> Result:
    """Trains with each method from the same start and on the same batches."""
    generator = torch.Generator().manual_seed(seed)
    count, steps, every, tested = (1000, 60, 30, 1000) if quick else (20000, 1000, 250, 4000)
    others, digits = mnist("train", count, generator)
    chosen = torch.cat([(digits == digit).nonzero()[:10, 0] for digit in range(10)])
    x, y = others[chosen], digits[chosen]  # the labels of the others are not used
    x_test, y_test = mnist("test", tested, generator)
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, (lr, mixed, moved) in METHODS.items():
        torch.manual_seed(seed)
        model = network()
        params: Params = dict(model.named_parameters())
        optimizer = torch.optim.SGD(
            model.parameters(), lr, MOMENTUM, weight_decay=DECAY, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        curves[name] = []
        for step in range(1, steps + 1):
            i, j = torch.randint(len(x), (BATCH,)), torch.randint(count, (BATCH,))
            share = torch.rand(BATCH, 1)
            lab, more, target = x[i], others[j], F.one_hot(y[i], 10).float()
            detached = {n: p.detach() for n, p in params.items()}
            if moved:
                pseudo = moved_labels(detached, more, (lab, y[i]), optimizer.param_groups[0]["lr"])
            elif mixed:
                pseudo = predictions(detached, more)
            if mixed:
                lab = share * lab + (1 - share) * more
                target = share * target + (1 - share) * pseudo
            loss = F.cross_entropy(model(lab), target)
            if moved:
                loss = loss + min(1, 4 * step / steps) * consistency(params, pseudo, more)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % every == 0:
                with torch.no_grad():
                    wrong = model(x_test).argmax(1) != y_test
                curves[name].append((step, 100 * wrong.double().mean().item()))
    return Result({name: {"test error, %": c[-1][1]} for name, c in curves.items()}, curves)


def draw(figure: Figure, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Test errors over steps."""
    lines(figure, curves, "step", "test error, %")


COMPARE = ("MetaSemi", "mix-up only")

if __name__ == "__main__":
    main(run, draw, COMPARE)
