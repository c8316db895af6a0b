"""Training without backpropagation: forward gradients with local losses, on MNIST.

The derivative in a random direction, computed forwards, times this direction is an unbiased
estimate of the gradient. Its variance grows with the number of perturbed numbers: weights, the
activations of each example, or those of a small group of units with a loss of their own (Ren et
al. 2023, arXiv 2210.03310).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, jvp

from examples.common import Result, lines, main, mnist

Params = dict[str, Tensor]
WIDTHS, GROUPS, BATCH, MOMENTUM = (784, 256, 256), 4, 128, 0.9
LAYERS = range(1, len(WIDTHS))


def initial(local: bool) -> Params:
    """Hidden layers, and heads `(groups, units, 10)`: of the last layer, or of local groups."""
    found = {}
    for layer in LAYERS:
        size, width = WIDTHS[layer - 1], WIDTHS[layer]
        found[f"weight {layer}"] = torch.randn(size, width) * (2 / size) ** 0.5
        found[f"bias {layer}"] = torch.zeros(width)
        groups = GROUPS if local else 1
        if local or layer == LAYERS[-1]:
            found[f"head {layer}"] = torch.zeros(groups, width // groups, 10)
    return found


def forward(
    params: Params, x: Tensor, local: bool, noise: dict[int, Tensor] | None = None
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Inputs and hidden activations, and the logits `(n, groups, 10)` of layers with heads."""
    activations, logits = [x], {}
    for layer in LAYERS:
        below = activations[-1].detach() if local else activations[-1]
        z = below @ params[f"weight {layer}"] + params[f"bias {layer}"]
        grouped = (z if noise is None else z + noise[layer]).relu().unflatten(1, (GROUPS, -1))
        activations.append(F.layer_norm(grouped, grouped.shape[2:]).flatten(1))
        head = params.get(f"head {layer}")
        if head is not None:
            grouped = activations[-1].unflatten(1, head.shape[:2])
            logits[layer] = torch.einsum("ngw,gwc->ngc", grouped, head)
    return activations, logits


def losses(logits: dict[int, Tensor], y: Tensor) -> dict[int, Tensor]:
    """Of each example and group `(n, groups)`."""
    return {
        layer: F.cross_entropy(z.movedim(2, 1), y[:, None].expand(z.shape[:2]), reduction="none")
        for layer, z in logits.items()
    }


def exact(params: Params, x: Tensor, y: Tensor, local: bool) -> Params:
    """By backpropagation."""

    def loss(params: Params) -> Tensor:
        return sum_of(losses(forward(params, x, local)[1], y))

    found: Params = grad(loss)(params)
    return found


def sum_of(found: dict[int, Tensor]) -> Tensor:
    """Of layers and groups, mean over examples."""
    return torch.stack([each.mean(0).sum() for each in found.values()]).sum()


def perturbed_weights(params: Params, x: Tensor, y: Tensor, local: bool) -> Params:
    """The directional derivative in a normal direction of all hidden weights, times this."""
    inner = {name: p for name, p in params.items() if "head" not in name}
    along = {name: torch.randn_like(p) for name, p in inner.items()}

    def loss(inner: Params) -> Tensor:
        return sum_of(losses(forward({**params, **inner}, x, local)[1], y))

    _, slope = jvp(loss, (inner,), (along,))[:2]
    return {name: slope * direction for name, direction in along.items()}


def perturbed_activations(params: Params, x: Tensor, y: Tensor, local: bool) -> Params:
    """A direction of each example's activations, in one pass for all layers, groups and examples.

    With local losses, the derivative of a group's loss is due to the perturbation of this group.
    """
    along = {layer: torch.randn(len(x), WIDTHS[layer]) for layer in LAYERS}
    none = {layer: torch.zeros_like(direction) for layer, direction in along.items()}

    def found(noise: dict[int, Tensor]) -> tuple[dict[int, Tensor], list[Tensor]]:
        activations, logits = forward(params, x, local, noise)
        return losses(logits, y), activations

    (_, activations), (slopes, _) = jvp(found, (none,), (along,))[:2]
    grads = {}
    for layer, direction in along.items():
        slope = slopes.get(layer, slopes[LAYERS[-1]])
        z = direction.unflatten(1, (slope.shape[1], -1)) * slope[:, :, None] / len(x)
        grads[f"weight {layer}"] = activations[layer - 1].T @ z.flatten(1)
        grads[f"bias {layer}"] = z.flatten(1).sum(0)
    return grads


def exact_heads(params: Params, x: Tensor, y: Tensor, local: bool) -> Params:
    """Of the heads, whose gradient needs no backpropagation."""
    activations, logits = forward(params, x, local)
    found = {}
    for layer, z in logits.items():
        error = (z.softmax(2) - F.one_hot(y, 10)[:, None]) / len(x)
        grouped = activations[layer].unflatten(1, (z.shape[1], -1))
        found[f"head {layer}"] = torch.einsum("ngw,ngc->gwc", grouped, error)
    return found


Estimate = Callable[[Params, Tensor, Tensor, bool], Params]
# By method: gradient of the hidden layers, whether losses are local, learning rate.
METHODS: dict[str, tuple[Estimate, bool, float]] = {
    "backpropagation": (exact, False, 0.1),
    "backpropagation, local losses": (exact, True, 0.1),
    "activities perturbed, local losses": (perturbed_activations, True, 0.01),
    "activities perturbed": (perturbed_activations, False, 0.005),
    "weights perturbed": (perturbed_weights, False, 0.0003),
}


def run(seed: int, quick: bool) -> Result:
    """Trains with each estimate, on the same batches."""
    generator = torch.Generator().manual_seed(seed)
    count, epochs, tested = (1280, 4, 1000) if quick else (60000, 2, 10000)
    x, y = mnist("train", count, generator)
    x_test, y_test = mnist("test", tested, generator)
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, (estimate, local, lr) in METHODS.items():
        torch.manual_seed(seed)
        params = initial(local)
        order = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(params.values(), lr, MOMENTUM, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (count // BATCH))
        curves[name] = []
        for epoch in range(epochs):
            for batch in torch.randperm(count, generator=order).split(BATCH)[: count // BATCH]:
                given = params, x[batch], y[batch], local
                for part, found in {**estimate(*given), **exact_heads(*given)}.items():
                    params[part].grad = found
                optimizer.step()
                schedule.step()
            mean = forward(params, x_test, local)[1][LAYERS[-1]].mean(1)
            wrong = mean.argmax(1) != y_test
            curves[name].append((epoch + 1, 100 * wrong.double().mean().item()))
    return Result({name: {"test error, %": c[-1][1]} for name, c in curves.items()}, curves)


def draw(figure: Figure, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Test errors over epochs."""
    lines(figure, curves, "epoch", "test error, %")


COMPARE = ("activities perturbed, local losses", "backpropagation")

if __name__ == "__main__":
    main(run, draw, COMPARE)
