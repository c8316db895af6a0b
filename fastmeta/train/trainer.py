"""The meta-training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from fastmeta.data import TaskSource
from fastmeta.distributed import Sharding
from fastmeta.learners import MetaLearner, NonFiniteError
from fastmeta.schedules import schedule
from fastmeta.train._meter import Meter
from fastmeta.train.checkpoint import BEST, prune, save_checkpoint, step_path
from fastmeta.train.config.schema import TrainConfig
from fastmeta.train.errors import DivergedError
from fastmeta.train.evaluation import evaluate
from fastmeta.train.logs import Log, Record
from fastmeta.train.metrics import Estimate, Metric
from fastmeta.train.progress import Progress

# What of a learner's state belongs to the course of training, not to what was learned.
_OF_THE_RUN = ("optimizer", "non_finite_guard")


@dataclass(frozen=True)
class Best:
    """The best validation so far.

    Attributes:
        step: meta-steps then.
        val: the validation score.
        learner: its state then, without that of the optimizer and the non_finite_guard.
    """

    step: int
    val: Estimate
    learner: dict[str, Any]


class Trainer:
    """Meta-trains a learner, validates, logs, and saves checkpoints that continue exactly.

    Meta-step ``i`` trains on meta-batch ``train[i]``, so a run resumed on the same
    machine takes the same steps as one that never stopped.

    Args:
        config: how long, how often, where.
        learner: what is trained.
        train: training tasks.
        val: validation tasks, the first ``config.val_tasks`` of which are used.
        metric: the score of query outputs.
        folder: of the run.
        sharding: of the training tasks over ranks, of which the first one alone writes anything.

    Attributes:
        step: meta-steps taken.
        seconds: the run took up to its last record or checkpoint.
        history: all records so far.
        best: the best validation so far.
        logs: where records go.
    """

    def __init__(
        self,
        config: TrainConfig,
        learner: MetaLearner,
        train: TaskSource,
        val: TaskSource,
        metric: Metric,
        folder: Path,
        sharding: Sharding | None = None,
    ) -> None:
        self.config = config
        self.sharding = sharding
        self.writes = sharding is None or sharding.rank == 0
        self.learner = learner
        self.metric = metric
        self.folder = folder
        self.step = 0
        self.seconds = 0.0
        self.history: list[Record] = []
        self.best: Best | None = None
        self.logs: Sequence[Log] = ()
        self._train_tasks = train
        self._val_tasks = val
        self._meter = Meter(metric, sharding)
        self._scheduler = LambdaLR(learner.optimizer, _lr_factor(config))

    def fit(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Trains up to ``config.steps`` meta-steps.

        Args:
            stop: asked after each meta-step; true ends training there, with a checkpoint.

        Returns:
            Whether training is complete.

        Raises:
            DivergedError: if loss or score are no longer finite, or a task's loss or gradient is
                not and ``config.non_finite`` is ``"raise"``.
        """
        try:
            return self._fit(stop)
        except NonFiniteError as error:
            raise DivergedError(str(error)) from error

    def _fit(self, stop: Callable[[], bool]) -> bool:
        last, wanted = self.config.steps, False
        began = time.perf_counter() - self.seconds
        self._meter.restart_clock()
        with Progress(last, self.step, quiet=not self.writes) as progress:
            while self.step < last:
                self._train_step()
                progress.advance()
                log, validate, save = (
                    self.step % every == 0 or self.step == last
                    for every in (
                        self.config.log_every,
                        self.config.val_every,
                        self.config.checkpoint_every,
                    )
                )
                wanted = wanted or stop()
                stopping = self._agreed(wanted, log)
                if log or validate or save or stopping:
                    self.seconds = time.perf_counter() - began
                    self.learner.non_finite_guard.check()
                if log:
                    self._log_training(progress)
                with self._meter.paused():
                    if validate:
                        self._validate(progress)
                    if save or stopping:
                        self.save()
                if stopping:
                    break
        return self.step == last

    def _agreed(self, wanted: bool, together: bool) -> bool:
        """Whether to stop; ranks ask each other, but only where they wait for each other anyway."""
        if self.sharding is None:
            return wanted
        if not together:
            return False
        device = next(self.learner.module.parameters()).device
        return self.sharding.sum(torch.tensor(float(wanted), device=device)).item() > 0

    def _train_step(self) -> None:
        batch = self._train_tasks[self.step]
        self._meter.add(batch, self.learner.step(batch), self.learner.non_finite_guard.finite)
        self._scheduler.step()
        self.step += 1

    def _log_training(self, progress: Progress) -> None:
        loss, score, speed, skipped = self._meter.read()
        if skipped:
            progress.say(
                f"step {self.step}: tasks skipped since the last record: {skipped} (loss or "
                "gradient not finite)"
            )
        self._check_finite("training loss", loss)
        lr = self.learner.optimizer.param_groups[0]["lr"]
        row = Record(self.step, "train", score, None, loss, lr, speed, self.seconds, skipped)
        self._record(row)
        progress.show(
            **{
                "loss": f"{loss:.4g}",
                self.metric.name: self.metric.show(score),
                "tasks/s": f"{speed:.0f}",
            }
        )

    def _validate(self, progress: Progress) -> None:
        steps = self.config.eval_inner_steps
        count, metric = self.config.val_tasks, self.metric
        val = evaluate(self.learner, self._val_tasks, count, metric, steps, sharding=self.sharding)
        self._check_finite(f"validation {self.metric.name}", val.mean)
        self._record(Record(self.step, "val", val.mean, val.ci95, seconds=self.seconds))
        improved = self.best is None or self.metric.better(val.mean, self.best.val.mean)
        if improved:
            state = self.learner.state_dict()
            kept = {name: part for name, part in state.items() if name not in _OF_THE_RUN}
            self.best = Best(self.step, val, deepcopy(kept))
            self._write(self.folder / BEST)
        progress.say(
            f"step {self.step}: validation {self.metric.name} "
            f"{self.metric.show(val.mean, val.ci95)}{' (best)' if improved else ''}"
        )

    def _record(self, record: Record) -> None:
        self.history.append(record)
        for log in self.logs:
            log.write(record)

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"step {self.step}: the {what} is {value}; training has diverged. Lower inner_lr "
                f"(now {self.config.inner_lr}) or lr (now {self.config.lr})."
            )

    def save(self) -> None:
        """Writes a numbered checkpoint, and removes those that are too many."""
        self._write(step_path(self.folder, self.step))
        if self.writes:
            prune(self.folder, self.config.keep)

    def _write(self, path: Path) -> None:
        state = self.state_dict()  # which all ranks make together
        if self.writes:
            save_checkpoint(path, state)

    def state_dict(self) -> dict[str, Any]:
        """All that continues the run: configuration, learner, schedule, log, generators."""
        best = self.best
        return {
            "config": self.config.to_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "learner": self.learner.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "meter": self._meter.state_dict(),
            "history": [record.to_list() for record in self.history],
            "best": None if best is None else [best.step, asdict(best.val), best.learner],
            # Of torch's generators; tasks have their own, which are without state.
            "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; the configuration stays that of this trainer."""
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.learner.load_state_dict(state["learner"])
        self._scheduler.load_state_dict(state["scheduler"])
        device = next(self.learner.module.parameters()).device
        self._meter.load_state_dict(state["meter"], device)
        self.history = [Record(*row) for row in state["history"]]
        if state["best"] is not None:
            step, val, learner = state["best"]
            self.best = Best(step, Estimate(**val), learner)
        torch.set_rng_state(state["rng"]["cpu"])
        for i, generator in enumerate(state["rng"]["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(generator, i)


def _lr_factor(config: TrainConfig) -> Callable[[int], float]:
    # Of the step alone: a run resumed with more steps has the schedule of the longer run.
    if config.lr_schedule == "none":
        return schedule("constant")
    return schedule(f"{config.lr_schedule}:{config.steps}")
