"""Which GSL variant should be the default? A small study on real tasks.

Omniglot 5-way 1-shot as in ``fastmeta train --dataset omniglot`` (strided Conv-4, 3 inner steps of
0.4, jitter, Adam with 3e-3), but meta-batches of 4 and fewer steps; every row with the same tasks
and the same initial weights.
Prints a table and writes a CSV: accuracy on 600 tasks of the evaluation alphabets, and how the
meta-gradient compares with the exact one at the end of training (cosine and relative length, mean
over 10 training meta-batches).

    python benchmarks/gsl_default.py --data ROOT --out benchmarks/results/gsl-default.csv
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fastmeta.data import EpisodeSampler, Jitter, load
from fastmeta.learners import MetaLearner, build
from fastmeta.models import Conv4

CANDIDATES: dict[str, dict[str, Any]] = {
    "R0 (FOMAML)": {"variant": "R0"},
    "R1 cos -0.3": {"eta": -0.3},
    "R1 cos +0.1": {"eta": 0.1},
    "R1 cos +0.3": {"eta": 0.3},
    "R1 cos +1": {"eta": 1.0},
    "R1 cos +0.3 by layer": {"eta": 0.3, "scope": "layer"},
    "R1 cos +0.3 until half": {"eta": 0.3, "schedule": "until:HALF"},
    "R1 L2 +0.1": {"eta": 0.1, "lam_c": 0.0, "lam_2": 1.0, "magnitude": "none"},
    "R2 +0.1": {"variant": "R2", "eta": 0.1},
    "R3 tau 0.1": {"variant": "R3", "tau": 0.1},
}


def make(method: str, seed: int, **options: Any) -> MetaLearner:
    torch.manual_seed(seed)
    module = Conv4(1, 28, 5, downsample="stride")
    return build(
        method,
        module,
        F.cross_entropy,
        inner_lr=0.4,
        inner_steps=3,
        optimizer=lambda params: torch.optim.Adam(params, lr=3e-3),
        **options,
    )


def accuracy(learner: MetaLearner, test: EpisodeSampler, batches: int) -> torch.Tensor:
    """Per-task accuracy ``(tasks,)``."""
    scores = []
    for i in range(batches):
        right = learner.predict(test[i], 10).argmax(-1) == test[i].query_y
        scores.append(right.float().mean(1))
    return torch.cat(scores)


def against_exact(learner: MetaLearner, train: EpisodeSampler, first: int) -> tuple[float, float]:
    """Cosine and length of the meta-gradient relative to MAML's, mean over 10 meta-batches."""
    exact = make("maml", 0)
    exact.module.load_state_dict(learner.module.state_dict())
    pairs = [
        (learner.meta_gradient(train[first + i])[0], exact.meta_gradient(train[first + i])[0])
        for i in range(10)
    ]
    cosines = [F.cosine_similarity(m, e, dim=0).item() for m, e in pairs]
    lengths = [(m.norm() / e.norm()).item() for m, e in pairs]
    return sum(cosines) / 10, sum(lengths) / 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with omniglot/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    classes, jitter = load("omniglot", "train", args.data), Jitter(3, 10, 0.15)
    train = EpisodeSampler(classes, 5, 1, 5, 4, seed=args.seed, jitter=jitter)
    test = EpisodeSampler(load("omniglot", "test", args.data), 5, 1, 15, 20, seed=1_000)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", newline="") as file:
        table = csv.writer(file)
        if file.tell() == 0:
            table.writerow(["candidate", "seed", "steps", "accuracy", "ci95", "cosine", "length"])
        for name, options in CANDIDATES.items():
            half = str(args.steps // 2)
            settings = {
                k: v.replace("HALF", half) if isinstance(v, str) else v for k, v in options.items()
            }
            learner = make("gsl", args.seed, **settings)
            for i in range(args.steps):
                learner.step(train[i])
            scores = 100 * accuracy(learner, test, 30)
            interval = 1.96 * scores.std() / len(scores) ** 0.5
            cosine, length = against_exact(learner, train, args.steps)
            row = [name, args.seed, args.steps, f"{scores.mean():.2f}", f"{interval:.2f}"]
            table.writerow([*row, f"{cosine:.4f}", f"{length:.4f}"])
            file.flush()
            print(*row, f"cos {cosine:.4f} length {length:.4f}", sep="  ", flush=True)


if __name__ == "__main__":
    main()
