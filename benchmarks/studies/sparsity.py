"""Accuracy of sparse networks: B-SMALL, and MAML pruned by magnitude to the same sparsity.

Trains both for each seed, and prints a page: accuracy over test tasks, and how much of each layer
is pruned after adaptation.

    python -m benchmarks.studies.sparsity --data ROOT > benchmarks/results/sparsity-cpu.md

A run that is finished is not trained again.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

import fastmeta
from fastmeta.evaluation.scores import evaluation_mode
from fastmeta.learners import MetaLearner
from fastmeta.models import sparsity
from fastmeta.train import configure, train
from fastmeta.train.builders import build_learner
from fastmeta.train.saved import SavedRun, load_run

OPTIONS: dict[str, Any] = {
    **{"dataset": "omniglot", "hidden": [16], "meta_batch": 4, "eval_inner_steps": 5},
    **{"val_tasks": 20, "test_tasks": 200, "untrained": False, "plots": False},
}


def trained(method: str, seed: int, args: argparse.Namespace) -> SavedRun:
    """The best learner of a run, which is trained if it is not there."""
    own = "" if method == "maml" else f"-{args.kl_weight:g}-{args.log_sigma:g}"
    name = f"{method}{own}-{args.steps}"
    folder = args.runs / f"{name}-seed{seed}"
    data = {} if args.data is None else {"data_root": args.data}
    if not (folder / "results.json").exists():
        run = {"method": method, "seed": seed, "steps": args.steps, "out": str(folder)}
        given = {"kl_weight": args.kl_weight, "log_sigma": args.log_sigma}
        weight = given if method == "b-small" else {}
        train(configure(OPTIONS, {"val_every": args.steps}, run, weight, data))
    return load_run(folder, data)


def score(run: SavedRun, learner: MetaLearner) -> tuple[float, float]:
    """Accuracy over test tasks, and its interval."""
    steps, count = run.config.eval_inner_steps, run.config.test_tasks
    found = fastmeta.evaluate(learner, run.sources["test"], count=count, steps=steps)
    return found.mean, found.ci95


def pruned_shares(run: SavedRun, tasks: int = 100) -> dict[str, float]:
    """The pruned share of each layer and of all, after adaptation to test tasks, on average."""
    found: list[dict[str, float]] = []
    batch, number = run.sources["test"][0], 0
    with evaluation_mode(run.learner.module):
        while len(found) < tasks:
            for task in batch:
                fast = run.learner.adapt(
                    task.support_x, task.support_y, run.config.eval_inner_steps
                )
                found.append(sparsity(fast))
            number += 1
            batch = run.sources["test"][number]
    return {name: statistics.mean(shares[name] for shares in found) for name in found[0]}


def by_magnitude(run: SavedRun, shares: Mapping[str, float], everywhere: bool) -> MetaLearner:
    """MAML without its smallest weights, which stay 0 in adaptation.

    Args:
        run: of MAML.
        shares: to prune.
        everywhere: one bound for all layers; otherwise each has the share of its own.
    """
    module = copy.deepcopy(run.learner.module)
    layers = {name: module.get_submodule(name) for name in shares if name != "total"}
    parts: list[tuple[nn.Module, str]] = [(layer, "weight") for layer in layers.values()]
    if everywhere:
        prune.global_unstructured(parts, prune.L1Unstructured, amount=shares["total"])
    else:
        for name, layer in layers.items():
            prune.l1_unstructured(layer, "weight", amount=shares[name])
    return build_learner(run.config, module)


def of_seed(seed: int, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Accuracies by method and pruned shares by layer, which are kept in a file."""
    kept = args.runs / f"{args.kl_weight:g}-{args.log_sigma:g}-{args.steps}-seed{seed}.json"
    if not kept.exists():
        sparse, dense = (trained(method, seed, args) for method in ("b-small", "maml"))
        shares = pruned_shares(sparse)
        both = {everywhere: by_magnitude(dense, shares, everywhere) for everywhere in (True, False)}
        scores = {
            "MAML": score(dense, dense.learner),
            "B-SMALL": score(sparse, sparse.learner),
            "MAML, pruned by magnitude, one bound for all layers": score(dense, both[True]),
            "MAML, pruned by magnitude, as much of each layer": score(dense, both[False]),
        }
        kept.write_text(json.dumps({"scores": scores, "shares": shares}))
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of the datasets (default: $FASTMETA_DATA)")
    parser.add_argument("--runs", type=Path, default=Path("runs/sparsity"))
    parser.add_argument("--steps", type=int, default=500, help="meta-steps")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--kl-weight", type=float, default=5e-5)
    parser.add_argument("--log-sigma", type=float, default=-4.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    fastmeta.keep_freed_memory()
    found = [of_seed(seed, args) for seed in args.seeds]
    _print(args, found)


def _print(args: argparse.Namespace, seeds: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    shares = [seed["shares"] for seed in seeds]
    tasks, count = OPTIONS["test_tasks"], len(shares)
    print(f"# B-SMALL: Omniglot, 5-way 1-shot, accuracy over {tasks} tasks\n")
    print("| method | pruned weights | accuracy, mean over seeds | of each seed |")
    print("| --- | --- | --- | --- |")
    pruned = 100 * statistics.mean(own["total"] for own in shares)
    for name in seeds[0]["scores"]:
        found = [seed["scores"][name] for seed in seeds]
        each = ", ".join(f"{100 * mean:.1f}" for mean, _ in found)
        mean, ci = (100 * statistics.mean(part) for part in zip(*found, strict=True))
        share = "0" if name == "MAML" else f"{pruned:.0f} %"
        spread = f", sd {100 * statistics.stdev(m for m, _ in found):.2f}" if count > 1 else ""
        print(f"| {name} | {share} | {mean:.2f} ± {ci:.2f}{spread} % | {each} |")
    print("\n| layer | pruned, of each seed |\n| --- | --- |")
    for layer in shares[0]:
        print(f"| {layer} | {', '.join(f'{100 * own[layer]:.0f} %' for own in shares)} |")
    options = f"--steps {args.steps} --kl-weight {args.kl_weight:g} --log-sigma {args.log_sigma:g}"
    print(
        f"\n{args.steps} meta-steps of 4 tasks, strided Conv4-16, one inner step in training and 5 "
        f"at test, seeds {', '.join(map(str, args.seeds))}; B-SMALL with a KL weight of "
        f"{args.kl_weight:g}, `log_sigma` begins as {args.log_sigma:g}. Intervals: 95 % over test "
        "tasks, mean over seeds; sd over seeds. MAML is pruned before adaptation, B-SMALL in every "
        "forward pass; the pruned shares are those after adaptation, over 100 tasks.\n\n"
        f"`python -m benchmarks.studies.sparsity --data ROOT {options}`, torch "
        f"{torch.__version__}, {time.strftime('%Y-%m-%d')}."
    )


if __name__ == "__main__":
    main()
