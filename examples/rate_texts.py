"""A DataRater in miniature (Calian et al. 2025): a network weighs texts of mixed quality.

Half of the texts are Python source, the others have their characters shuffled, or some replaced.
The rater is trained by its gradient through the training of language models, whose outer loss is
that of good texts; each call continues a run with the next steps, until a new run starts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from examples.common import Result, histogram, language_model, main, python_sources
from fastmeta.adaptation import AdamW

Params = dict[str, Tensor]
LENGTH, WINDOW, BATCH, STEPS, CALLS = 32, 8, 32, 8, 6
GOOD, SHUFFLED, REPLACED = 0, 1, 2
OPTIMIZER = AdamW(lr=3e-3, eps=1e-5)


class Rater(nn.Module):
    """A convolution over the codes of a text; weights of a batch have mean 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, 16)
        self.conv = nn.Conv1d(16, 32, 4)
        self.head = nn.Linear(32, 1)

    def forward(self, texts: Tensor) -> Tensor:
        """Logarithms of unnormalized weights `(n,)` of texts `(n, WINDOW + LENGTH)`."""
        features = F.gelu(self.conv(self.embed(texts).transpose(1, 2))).mean(2)
        ratings: Tensor = self.head(features)
        return ratings.squeeze(1)


MODEL, RATER = language_model(WINDOW), Rater()


def losses(params: Params, texts: Tensor) -> Tensor:
    """Mean loss of each text, in nats per character."""
    windows = texts.unfold(1, WINDOW + 1, 1).flatten(0, 1)
    output = functional_call(MODEL, params, (windows[:, :-1],))
    return F.cross_entropy(output, windows[:, -1], reduction="none").view(len(texts), -1).mean(1)


def inner_loss(params: Params, rater: Params, texts: Tensor) -> Tensor:
    """Weighted by the rater."""
    weights: Tensor = len(texts) * functional_call(RATER, rater, (texts,)).softmax(0)
    return (weights * losses(params, texts)).mean()


def outer_loss(params: Params, rater: Params, texts: Tensor) -> Tensor:
    """Of good texts."""
    return losses(params, texts).mean()


def good(codes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random parts of the code of modules, `(count, WINDOW + LENGTH)`."""
    starts = torch.randint(len(codes) - WINDOW - LENGTH, (count, 1), generator=generator)
    return codes[starts + torch.arange(WINDOW + LENGTH)]


def mixed(codes: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of them good, a quarter shuffled, and a quarter with 30 % of codes replaced."""
    texts = good(codes, count, generator)
    kinds = torch.tensor([GOOD, GOOD, SHUFFLED, REPLACED]).repeat(-(-count // 4))[:count, None]
    order = torch.rand(texts.shape, generator=generator).argsort(1)
    other = torch.randint(32, 127, texts.shape, generator=generator)
    replaced = torch.rand(texts.shape, generator=generator) < 0.3
    texts = torch.where(kinds == SHUFFLED, texts.gather(1, order), texts)
    return torch.where((kinds == REPLACED) & replaced, other, texts), kinds[:, 0]


def run(seed: int, quick: bool) -> Result:
    """Trains the rater, then language models with its weights and with controls."""
    generator = torch.Generator().manual_seed(seed)
    outer_steps, steps = (24, 60) if quick else (120, 500)
    sources = python_sources(smallest=5000)
    order = torch.randperm(len(sources), generator=generator).tolist()
    train = torch.cat([sources[i] for i in order[20:]])
    test = torch.cat([sources[i] for i in order[:20]])
    torch.manual_seed(seed)
    rater = {n: p.detach().requires_grad_() for n, p in Rater().named_parameters()}
    optimizer = torch.optim.Adam(rater.values(), lr=1e-2)
    for outer_step in range(outer_steps):
        if outer_step % CALLS == 0:
            params, state = dict(language_model(WINDOW).named_parameters()), None
        found = fastmeta.metagradient(
            inner_loss, outer_loss, params, rater,
            [mixed(train, BATCH, generator)[0] for _ in range(STEPS)], optimizer=OPTIMIZER,
            outer_batches={STEPS: good(train, 64, generator)}, state=state,
        )  # fmt: skip
        params, state = found.final_params, found.state
        for name, p in rater.items():
            p.grad = found.meta[name]
        optimizer.step()

    constant = {n: torch.zeros_like(p) for n, p in rater.items()}  # all weights are 1
    batches = [mixed(train, BATCH, generator) for _ in range(steps)]
    held_out = good(test, 1000, generator)

    def held_out_loss(rater: Params, texts: list[Tensor]) -> float:
        torch.manual_seed(seed)
        start = dict(language_model(WINDOW).named_parameters())
        return fastmeta.metagradient(
            inner_loss, outer_loss, start, rater, texts,
            optimizer=OPTIMIZER, outer_batches={len(texts): held_out}, truncate=1,
        ).outer_loss.item()  # fmt: skip

    examples, kinds = mixed(test, 2000, generator)
    with torch.no_grad():
        ratings = functional_call(RATER, rater, (examples,))
    auc = {
        kind: float(roc_auc_score((kinds == GOOD)[kinds != other], ratings[kinds != other]))
        for kind, other in (("shuffled", REPLACED), ("replaced", SHUFFLED))
    }
    texts = [batch for batch, _ in batches]
    scores = {
        "rater's weights": {
            "loss of new modules": held_out_loss(rater, texts),
            **{f"AUC, good against {kind}": value for kind, value in auc.items()},
        },
        "uniform weights": {"loss of new modules": held_out_loss(constant, texts)},
        "good texts only": {
            "loss of new modules": held_out_loss(constant, [b[k == GOOD] for b, k in batches])
        },
    }
    return Result(scores, (ratings, kinds))


def draw(figure: Figure, picture: tuple[Tensor, Tensor]) -> None:
    """Ratings of new texts."""
    ratings, kinds = picture
    names = ("good", "shuffled", "replaced")
    values = {name: ratings[kinds == kind] for kind, name in enumerate(names)}
    histogram(figure, values, "logarithm of the weight", "texts of new modules")


COMPARE = ("rater's weights", "uniform weights")

if __name__ == "__main__":
    main(run, draw, COMPARE)
