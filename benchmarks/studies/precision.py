"""Meta-gradients in reduced precision, against float64.

Cosine with the same meta-gradient in float64, median and minimum over initialisations and
meta-batches: a sine MLP, Conv4 on 5-way 1-shot digits (with and without BatchNorm) and a small
transformer on random tokens, all before training. Prints a table:

    python -m benchmarks.studies.precision > benchmarks/results/precision-cpu.txt
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.data import EpisodeSampler, SineTasks, load_digits
from fastmeta.learners import compare_precision
from fastmeta.metagrad import CentralDifference, Exact, FirstOrder, MetaGradient
from fastmeta.models import MLP, Conv4

SEEDS = 5
SINES = SineTasks(tasks=4, shots=10, queries=10)
DIGITS = EpisodeSampler(load_digits("train"), 5, 1, 5, tasks=4)
METAGRADS: dict[str, Callable[[], MetaGradient]] = {
    "first-order": FirstOrder,
    "exact": Exact,
    "central-difference": CentralDifference,
}


class Transformer(nn.Module):
    """Classifies sequences of 16 tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 128, 0.0, batch_first=True, norm_first=True)
        self.embedding = nn.Embedding(32, 32)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores `(n, 5)` of token ids `(n, 16)`."""
        out: Tensor = self.head(self.encoder(self.embedding(x)).mean(1))
        return out


def tokens() -> TaskBatch:
    x, y = torch.randint(32, (2, 4, 25, 16)), torch.arange(5).repeat(5).expand(4, -1)
    return TaskBatch(x[0, :, :5], y[:, :5], x[1], y)


def conv(batch_norm: bool) -> nn.Module:
    module = Conv4(1, 8, 5, hidden=32)
    for block in module.features:
        if isinstance(block, nn.Sequential) and not batch_norm:
            block[1] = nn.Identity()
    return module


# Network, meta-batch of a seed, inner learning rate.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], TaskBatch], float]] = {
    "sine MLP": (lambda: MLP(1, 1), lambda seed: SINES[seed], 0.01),
    "transformer": (Transformer, lambda seed: tokens(), 0.1),
    "Conv4 without BatchNorm": (lambda: conv(False), lambda seed: DIGITS[seed], 0.4),
    "Conv4": (lambda: conv(True), lambda seed: DIGITS[seed], 0.4),
}


def cosines(case: str, metagrad: str, steps: int, dtype: torch.dtype | None) -> list[float]:
    make, batch, lr = CASES[case]
    loss = F.mse_loss if case == "sine MLP" else F.cross_entropy
    found = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        learner = MetaLearner(
            make(), loss, adaptation=SGD(lr, steps), metagrad=METAGRADS[metagrad](),
            aggregation=Mean(), autocast=dtype,
        )  # fmt: skip
        found.append(compare_precision(learner, batch(seed)).cosine.item())
    return found


def main() -> None:
    print("| network | inner steps | meta-gradient | float32 | bfloat16 | float16 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        for steps in (1, 5):
            for metagrad in METAGRADS:
                cells = []
                for dtype in (None, torch.bfloat16, torch.float16):
                    found = cosines(case, metagrad, steps, dtype)
                    cells.append(f"{statistics.median(found):.3f} ({min(found):.3f})")
                print(f"| {case} | {steps} | {metagrad} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
