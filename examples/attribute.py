"""Attribution of a prediction to training examples, checked by leaving them out.

The derivatives of the loss of a prediction with respect to the weights of the training examples,
at 1, predict how the loss changes if examples are left out of training, which we then do. Ilyas &
Engstrom 2025 ("MAGIC", arXiv 2504.16430) attribute language models so.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import fastmeta
from examples.common import Result, main, mnist
from fastmeta.adaptation import SGD

Params = dict[str, Tensor]
OPTIMIZER = SGD(lr=0.02, momentum=0.9)
MODEL = nn.Sequential(
    nn.Unflatten(1, (1, 28, 28)), nn.AvgPool2d(4), nn.Flatten(),
    nn.Linear(49, 32), nn.GELU(), nn.Linear(32, 10),
)  # fmt: skip


def losses(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Of each example."""
    return F.cross_entropy(functional_call(MODEL, params, (x,)), y, reduction="none")


def run(seed: int, quick: bool) -> Result:
    """Attributes the predictions for a few test images."""
    generator = torch.Generator().manual_seed(seed)
    images, steps, queries, subsets = (60, 30, 2, 15) if quick else (200, 100, 5, 50)
    x, y = mnist("train", images, generator)
    query_x, query_y = mnist("test", queries, generator)
    MODEL.apply(lambda part: part.reset_parameters() if isinstance(part, nn.Linear) else None)
    batches = [torch.randperm(images, generator=generator)[:50] for _ in range(steps)]

    def inner_loss(params: Params, weights: Tensor, batch: Tensor) -> Tensor:
        """Of many networks at once, each with its own weights `(networks, images)`."""
        found = vmap(losses, (0, None, None))(params, x[batch], y[batch])
        return (weights[:, batch] * found).mean(1).sum()

    def trained(
        weights: Tensor, query: int | None = None, truncate: int | None = None
    ) -> fastmeta.trajectory.Metagradient:
        """The run with these weights, and the derivatives of the loss of a query."""
        start = {n: p.expand(len(weights), *p.shape) for n, p in MODEL.named_parameters()}
        part = slice(None) if query is None else slice(query, query + 1)

        def outer_loss(params: Params, weights: Tensor) -> Tensor:
            return vmap(losses, (0, None, None))(params, query_x[part], query_y[part]).sum()

        return fastmeta.metagradient(
            inner_loss, outer_loss, start, weights, batches, optimizer=OPTIMIZER, truncate=truncate
        )

    def query_losses(params: Params) -> Tensor:
        with torch.no_grad():
            return vmap(losses, (0, None, None))(params, query_x, query_y)

    # Leaves out each image, and random tenths; truncated, as we want no derivatives here.
    left_out = [torch.tensor([i]) for i in range(images)]
    left_out += [
        torch.randperm(images, generator=generator)[: images // 10] for _ in range(subsets)
    ]
    everything = torch.ones(1, images)
    others = torch.stack([everything[0].index_fill(0, some, 0) for some in left_out])
    stacked = trained(everything, truncate=1).final_params
    actual = query_losses(trained(others, truncate=1).final_params) - query_losses(stacked)
    final = {n: p[0] for n, p in stacked.items()}

    def gradients(x: Tensor, y: Tensor) -> Tensor:
        """Of each example at the end of training."""

        def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
            return losses(params, x[None], y[None]).sum()

        found = vmap(grad(loss), (None, 0, 0))(final, x, y)
        return torch.cat([g.flatten(1) for g in found.values()], 1)

    # (images, queries), as all attributions
    scores = torch.cat([trained(everything, query).meta.T for query in range(queries)], 1)
    similarity = -gradients(x, y) @ gradients(query_x, query_y).T
    cosine = F.normalize(gradients(x, y)) @ F.normalize(gradients(query_x, query_y)).T
    methods = {
        "metagradient": scores,
        "product of gradients at the end": similarity,
        "cosine of gradients at the end": -cosine,
        "random": torch.randn(images, queries, generator=generator),
    }
    rows = {}
    for name, found in methods.items():
        predicted = torch.stack([-found[some].sum(0) for some in left_out])
        single, several = slice(images), slice(images, None)
        rows[name] = {
            f"{kind}, {what}": sum(
                float(correlation(predicted[part, q], actual[part, q])[0]) for q in range(queries)
            )
            / queries
            for kind, part in (("one left out", single), ("a tenth left out", several))
            for what, correlation in (("Spearman", spearmanr), ("Pearson", pearsonr))
        }
    picture = (-scores, -similarity, actual[:images])
    return Result(rows, picture)


def draw(figure: Figure, picture: tuple[Tensor, Tensor, Tensor]) -> None:
    """Predicted and actual changes of the loss of the first query."""
    *predictions, actual = picture
    for axes, found, title in zip(
        figure.subplots(1, 2), predictions, ("metagradient", "gradients at the end"), strict=True
    ):
        axes.scatter(found[:, 0], actual[:, 0], s=6)
        axes.set(title=title, xlabel="predicted change", ylabel="change if left out")


COMPARE = ("metagradient", "product of gradients at the end")

if __name__ == "__main__":
    main(run, draw, COMPARE)
