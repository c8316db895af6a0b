"""An assembled training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastmeta.data import TaskSource
from fastmeta.distributed import Sharding
from fastmeta.evaluation import Metric, evaluate
from fastmeta.functional import Head
from fastmeta.learners import MetaLearner
from fastmeta.train.config.schema import TrainConfig
from fastmeta.train.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Run:
    """A configuration, and what is built from it by `fastmeta.train.builders.build_run`.

    Attributes:
        config: the options.
        folder: where checkpoints, logs and results are.
        device: of the learner and the tasks.
        metric: the score of query outputs.
        learner: to be trained, or trained.
        sources: of the tasks, by split: `"train"`, `"val"` and `"test"`, or some of these.
        sharding: of the tasks over ranks; `None` for a single process.
    """

    config: TrainConfig
    folder: Path
    device: torch.device
    metric: Metric
    learner: MetaLearner
    sources: Mapping[str, TaskSource]
    sharding: Sharding | None = None

    @property
    def writes(self) -> bool:
        """Whether this process writes files and reports: of several ranks the first one does."""
        return self.sharding is None or self.sharding.rank == 0

    def scores(
        self,
        split: str,
        *,
        learner: MetaLearner | None = None,
        steps: int | None = None,
        head: Head = "main",
        what: str | None = None,
    ) -> Tensor:
        """The scores `(tasks,)` of the tasks that the configuration evaluates.

        Args:
            split: `"val"` or `"test"`.
            learner: the one that adapts; by default that of the run.
            steps: inner steps; by default `config.eval_inner_steps`.
            head: whose outputs are scored, see
                [`fastmeta.MetaLearner.predict`][fastmeta.learners.MetaLearner.predict].
            what: label of the progress; none is shown by default.
        """
        count = {"val": self.config.val_tasks, "test": self.config.test_tasks}[split]
        steps = self.config.eval_inner_steps if steps is None else steps
        label = f"{what}, {steps} inner step{'s' * (steps != 1)}"
        quiet = what is None or not self.writes
        announce = split == "test"
        with Progress(label, count, unit="task", quiet=quiet, announce=announce) as progress:
            return evaluate(
                self.learner if learner is None else learner,
                self.sources[split],
                count=count,
                metric=self.metric,
                steps=steps,
                head=head,
                sharding=self.sharding,
                advance=progress.reach,
            ).scores
