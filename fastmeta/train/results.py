"""Final evaluation of a run, and `results.json`."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch

from fastmeta.backend import build_info
from fastmeta.evaluation import estimate
from fastmeta.functional import Head
from fastmeta.learners import MetaLearner
from fastmeta.train._atomic_files import write_json
from fastmeta.train.builders import build_learner, build_module
from fastmeta.train.errors import DivergedError
from fastmeta.train.plots import draw
from fastmeta.train.progress import Progress
from fastmeta.train.run import Run
from fastmeta.train.trainer import Trainer

RESULTS_NAME = "results.json"
PICTURE_NAME = "curves.png"


def finish(trainer: Trainer) -> dict[str, Any]:
    """Evaluates the best learner of a trained run on test tasks, and writes results and plots."""
    run, best = trainer.run, trainer.best
    config, learner, steps = run.config, run.learner, run.config.eval_inner_steps
    assert best is not None, "the last step validates"
    learner.load_state_dict({**learner.state_dict(), **best.learner})
    info = build_info()
    results = {
        "fastmeta": info.version,
        "torch": torch.__version__,
        "backend": f"{info.backend}, {run.device.type}",
        "dataset": config.dataset,
        "method": config.method,
        "metric": run.metric.name,
        "steps": trainer.step,
        "seconds": round(trainer.seconds, 1),
        "tasks_per_second": round(trainer.step * config.meta_batch / trainer.seconds, 1),
        "skipped_tasks": int(learner.non_finite_guard.skipped),
        "best_step": best.step,
        "val": {**asdict(best.val), "inner_steps": steps},
        "test": evaluate_on_test(run, learner, steps, config.co_test),
        **(_untrained(run) if config.untrained else {}),
        "config": config.to_dict(),
    }
    if run.writes:
        write_json(run.folder / RESULTS_NAME, results)
        if config.plots:
            picture = run.folder / PICTURE_NAME
            with Progress(f"drawing {picture}", announce=True):
                draw(picture, run, trainer.history, results)
    return {**results, "folder": str(run.folder)}


def evaluate_on_test(
    run: Run, learner: MetaLearner, steps: int, head: Head = "main", what: str = "test"
) -> dict[str, Any]:
    """The score of a learner on the test tasks of a run after `steps` inner steps.

    Args:
        run: has the test tasks.
        learner: the one that adapts.
        steps: inner steps.
        head: whose outputs are scored.
        what: label of the progress.

    Raises:
        DivergedError: if the score or its interval is not finite.
    """
    found = estimate(run.scores("test", learner=learner, steps=steps, head=head, what=what))
    if not (math.isfinite(found.mean) and math.isfinite(found.ci95)):
        raise DivergedError(
            f"{what}: {run.metric.name} {found.mean} ± {found.ci95} after {steps} inner steps, "
            f"which diverge on some tasks. Lower inner_lr (now {run.config.inner_lr}) or the inner "
            "steps."
        )
    return {**asdict(found), "inner_steps": steps}


def _untrained(run: Run) -> dict[str, Any]:
    """The same network without meta-training, also with more inner steps: the fair baseline."""
    config = run.config
    learner = build_learner(config, build_module(config, run.sources["test"], run.device))
    steps = {"untrained": config.eval_inner_steps, "untrained_long": config.untrained_inner_steps}
    counts = sorted({*steps.values()} - {0})  # in the same order on all ranks
    found = {
        count: evaluate_on_test(run, learner, count, what="untrained network") for count in counts
    }
    return {name: found[count] for name, count in steps.items() if count}
