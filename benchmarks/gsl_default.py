"""Which GSL variant should be the default? A small study on real tasks.

The recipe of ``fastmeta train --dataset omniglot``, but fewer meta-steps and a constant outer
learning rate; every row with the same tasks and the same initial weights. Prints a table and writes
a CSV: accuracy on 600 tasks of the evaluation alphabets, and how the meta-gradient compares with
the exact one at the end of training (cosine and relative length, mean over 10 training
meta-batches).

    python benchmarks/gsl_default.py --data ROOT --out benchmarks/results/gsl-default.csv
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fastmeta.data import TaskSource
from fastmeta.learners import MetaLearner
from fastmeta.train import TrainConfig, configure
from fastmeta.train.evaluation import evaluate
from fastmeta.train.setup import build_learner, build_module, metric_of, task_source

CPU = torch.device("cpu")
COMPARED = 10  # meta-batches of the comparison with the exact gradient


def candidates(steps: int) -> dict[str, dict[str, Any]]:
    """Method options by name, for a run of ``steps`` meta-steps."""
    return {
        "R0 (FOMAML)": {"variant": "R0"},
        "R1 cos -0.3": {"eta": -0.3},
        "R1 cos +0.3": {"eta": 0.3},
        "R1 cos +1": {"eta": 1.0},
        "R1 cos +3": {"eta": 3.0},
        "R1 cos +1 by layer": {"eta": 1.0, "scope": "layer"},
        "R1 cos +1 until half": {"eta": 1.0, "schedule": f"until:{steps // 2}"},
        "R1 L2 +0.1": {"eta": 0.1, "lam_c": 0.0, "lam_2": 1.0, "magnitude": "none"},
        "R2 +0.1": {"variant": "R2", "eta": 0.1},
        "R3 tau 0.1": {"variant": "R3", "tau": 0.1},
    }


def make(config: TrainConfig, source: TaskSource) -> MetaLearner:
    """A learner with the initial weights of the seed."""
    return build_learner(config, build_module(config, source, CPU))


def against_exact(learner: MetaLearner, exact: MetaLearner, source: TaskSource, first: int) -> Any:
    """Mean cosine and relative length of the meta-gradient against MAML's, ``(2,)``."""
    exact.module.load_state_dict(learner.module.state_dict())
    pairs = []
    for i in range(first, first + COMPARED):
        mine, other = learner.meta_gradient(source[i])[0], exact.meta_gradient(source[i])[0]
        pairs.append(torch.stack([F.cosine_similarity(mine, other, 0), mine.norm() / other.norm()]))
    return torch.stack(pairs).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with omniglot/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base = {"dataset": "omniglot", "data_root": args.data, "seed": args.seed, "steps": args.steps}
    config = configure(base)
    source, test = (task_source(config, split, CPU) for split in ("train", "test"))
    exact = make(configure(base, {"method": "maml"}), source)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", newline="") as file:
        table = csv.writer(file)
        if file.tell() == 0:
            table.writerow(["candidate", "seed", "steps", "accuracy", "ci95", "cosine", "length"])
        for name, options in candidates(args.steps).items():
            learner = make(configure(base, {"metagrad_options": options}), source)
            for i in range(args.steps):
                learner.step(source[i])
            found = evaluate(
                learner, test, config.test_tasks, metric_of(config), config.eval_inner_steps
            )
            cosine, length = against_exact(learner, exact, source, args.steps).tolist()
            row = [name, args.seed, args.steps, f"{found.mean:.4f}", f"{found.ci95:.4f}"]
            row += [f"{cosine:.4f}", f"{length:.4f}"]
            table.writerow(row)
            file.flush()
            print(*row, sep="  ", flush=True)


if __name__ == "__main__":
    main()
