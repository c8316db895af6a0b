"""Look-ahead in ordinary training: a small GPT on the source code of Python's library.

In each step, half of the batch moves the matrices by a step of fixed norm, the gradient of the
other half is taken there, and the optimizer gets the mean of both gradients, or the second alone.
All see the same batches, of little text many times, as in a record that the trick has set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.common import Result, lines, main, python_sources
from fastmeta import TaskOptimizer
from fastmeta.aggregation import GradientAgreement
from fastmeta.metagrad import GSLCorrection
from fastmeta.optim import look_ahead

CONTEXT, BATCH, WIDTH, NORM = 64, 16, 64, 0.3


class GPT(nn.Module):
    """A transformer of two layers over ASCII codes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, WIDTH)
        self.place = nn.Parameter(0.1 * torch.randn(CONTEXT, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), False)
        self.head = nn.Linear(WIDTH, 128)
        self.mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)

    def forward(self, codes: Tensor) -> Tensor:
        """The loss of predicting each code `(n, CONTEXT + 1)` from those before it, in nats."""
        x = self.blocks(self.embed(codes[:, :-1]) + self.place, self.mask, is_causal=True)
        return F.cross_entropy(self.head(x).flatten(0, 1), codes[:, 1:].flatten())

    def matrices(self) -> list[Tensor]:
        """The weights of the transformer's layers."""
        return [p for p in self.blocks.parameters() if p.dim() == 2]


def plain(model: GPT, batch: Tensor, _: TaskOptimizer) -> None:
    """The gradient of the batch."""
    model(batch).backward()


def both_halves(model: GPT, batch: Tensor, _: TaskOptimizer) -> None:
    """The mean of the first half's gradient and of the second's at the moved weights."""
    first, second = batch.chunk(2)
    (model(first) / 2).backward()
    with look_ahead(model.matrices(), norm=NORM):
        (model(second) / 2).backward()


def second_half(model: GPT, batch: Tensor, _: TaskOptimizer) -> None:
    """First-order MAML: the gradient at the moved weights alone."""
    first, second = batch.chunk(2)
    model(first).backward()
    with look_ahead(model.matrices(), norm=NORM):
        model.zero_grad()
        model(second).backward()


def pairs(model: GPT, batch: Tensor, optimizer: TaskOptimizer) -> None:
    """Two pairs of parts of the batch are tasks, whose gradients the optimizer combines."""
    parts = batch.chunk(4)
    for support, query in (parts[:2], parts[2:]):
        with optimizer.task(scale=0.5) as task:
            grads = task.inner_gradients(model(support))
            with look_ahead(model.parameters(), grads, norm=NORM):
                (model(query) / 2).backward()


Step = Callable[[GPT, Tensor, TaskOptimizer], None]
METHODS: dict[str, tuple[bool, Step, dict[str, Any]]] = {
    "AdamW": (False, plain, {}),
    "AdamW, look-ahead, mean of both halves": (False, both_halves, {}),
    "AdamW, look-ahead, second half": (False, second_half, {}),
    "AdamW, agreement of two pairs": (False, pairs, {"aggregation": GradientAgreement()}),
    "AdamW, GSL correction of two pairs": (False, pairs, {"metagrad": GSLCorrection(eta=0.3)}),
    "Muon": (True, plain, {}),
    "Muon, look-ahead, mean of both halves": (True, both_halves, {}),
}


def run(seed: int, quick: bool) -> Result:
    """Trains with each method; losses on other modules."""
    steps, every, part = (24, 12, 500) if quick else (250, 25, 500)
    generator = torch.Generator().manual_seed(seed)
    sources = python_sources(smallest=5000)
    order = torch.randperm(len(sources), generator=generator).tolist()
    text = torch.cat([sources[i][2000 : 2000 + part] for i in order[20:]])
    other = torch.cat([sources[i][2000:3000] for i in order[:20]])
    held_out = other.unfold(0, CONTEXT + 1, CONTEXT)
    starts = torch.randint(len(text) - CONTEXT, (steps, BATCH, 1), generator=generator)
    batches = text[starts + torch.arange(CONTEXT + 1)]
    curves: dict[str, list[tuple[float, float]]] = {}  # CPU seconds, loss
    for name, (muon, method, options) in METHODS.items():
        torch.manual_seed(seed)
        model = GPT()
        inside = model.matrices() if muon else list(model.parameters())
        others = [p for p in model.parameters() if all(p is not q for q in inside)]
        base, lr = (torch.optim.Muon, 0.02) if muon else (torch.optim.AdamW, 3e-3)
        optimizer = TaskOptimizer(inside, base, lr=lr, **options)
        rest = [torch.optim.AdamW(others, lr=3e-3)] if muon else []
        used, curve = 0.0, []
        for step, batch in enumerate(batches, 1):
            start = time.process_time()
            model.zero_grad()
            method(model, batch, optimizer)
            for each in (optimizer, *rest):
                each.step()
            used += time.process_time() - start
            if step % every == 0:
                with torch.no_grad():
                    curve.append((used, model(held_out).item()))
        curves[name] = curve
    scores = {}
    for name, curve in curves.items():
        seconds, losses = zip(*curve, strict=True)
        budget = curves[name.split(",")[0]][-1][0]  # of plain training
        scores[name] = {
            "test loss, same text": losses[-1],
            "test loss, same CPU time": float(np.interp(budget, seconds, losses)),
            "CPU ms per step": 1000 * seconds[-1] / steps,
        }
    return Result(scores, curves)


def draw(figure: Figure, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Test losses over CPU time."""
    lines(figure, curves, "CPU seconds", "test loss, nats per character")


COMPARE = ("AdamW, look-ahead, mean of both halves", "AdamW")

if __name__ == "__main__":
    main(run, draw, COMPARE)
