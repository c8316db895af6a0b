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

from fastmeta.data import FeedbackSource
from fastmeta.evaluation import Estimate, estimate
from fastmeta.learners import NonFiniteError
from fastmeta.schedules import schedule
from fastmeta.train._generators import set_torch_generators, torch_generators
from fastmeta.train._meter import Meter
from fastmeta.train.checkpoint import BEST, prune, save_checkpoint, step_path
from fastmeta.train.config.schema import TrainConfig
from fastmeta.train.errors import DivergedError
from fastmeta.train.logs import Log, Record
from fastmeta.train.progress import Progress
from fastmeta.train.run import Run

# Parts of a learner's state that only continued training needs.
_TRAINING_STATE = ("optimizer", "non_finite_guard")


@dataclass(frozen=True)
class Best:
    """The best validation so far.

    Attributes:
        step: meta-steps then.
        val: the validation score.
        learner: its state then, without those of the optimizer and the non-finite guard.
    """

    step: int
    val: Estimate
    learner: dict[str, Any]


class Trainer:
    """Meta-trains a learner, validates, logs, and saves checkpoints that continue exactly.

    Meta-step `i` trains on meta-batch `i` of the source `"train"`, so a run resumed on the
    same machine takes the same steps as one that never stopped.

    Args:
        run: what is trained, with sources `"train"` and `"val"`. Of several ranks the first one
            alone writes anything.

    Attributes:
        run: as given.
        step: meta-steps taken.
        seconds: duration of the run up to its last record or checkpoint.
        history: all records so far.
        best: the best validation so far.
        logs: where records go.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.step = 0
        self.seconds = 0.0
        self.history: list[Record] = []
        self.best: Best | None = None
        self.logs: Sequence[Log] = ()
        self._meter = Meter(run.metric, run.sharding)
        self._scheduler = LambdaLR(run.learner.optimizer, _lr_factor(run.config))

    def fit(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Trains up to `config.steps` meta-steps.

        Args:
            stop: called after each meta-step; true ends training there, with a checkpoint.

        Returns:
            Whether training is complete.

        Raises:
            DivergedError: if loss or score are no longer finite, or a task's loss or gradient is
                not finite and `config.non_finite` is `"raise"`.
        """
        try:
            return self._fit(stop)
        except NonFiniteError as error:
            raise DivergedError(str(error)) from error

    def _fit(self, stop: Callable[[], bool]) -> bool:
        config, wanted = self.run.config, False
        intervals = (config.log_every, config.val_every, config.checkpoint_every)
        began = time.perf_counter() - self.seconds
        self._meter.restart_clock()
        what, quiet = f"training {config.method}", not self.run.writes
        with Progress(what, config.steps, self.step, quiet=quiet, announce=True) as progress:
            while self.step < config.steps:
                self._train_step()
                progress.advance()
                log, validate, save = (
                    self.step % every == 0 or self.step == config.steps for every in intervals
                )
                wanted = wanted or stop()
                stopping = self._agreed(wanted, log)
                if log or validate or save or stopping:
                    self.seconds = time.perf_counter() - began
                    self.run.learner.non_finite_guard.check()
                if log:
                    self._log_training(progress)
                with self._meter.paused():
                    if validate:
                        self._validate(progress)
                    if save or stopping:
                        self.save()
                if stopping:
                    break
        return self.step == config.steps

    def _agreed(self, wanted: bool, together: bool) -> bool:
        """Whether to stop; ranks decide it together, where they synchronize anyway."""
        if self.run.sharding is None:
            return wanted
        if not together:
            return False
        votes = torch.tensor(float(wanted), device=self.run.device)
        return self.run.sharding.sum(votes).item() > 0

    def _train_step(self) -> None:
        source, learner = self.run.sources["train"], self.run.learner
        batch = source[self.step]
        result = learner.step(batch)
        self._meter.add(batch, result, learner.non_finite_guard.finite)
        if isinstance(source, FeedbackSource):
            source.feedback(self.step, result.query_loss)
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
        lr, metric = self.run.learner.optimizer.param_groups[0]["lr"], self.run.metric
        self._record(
            Record(self.step, "train", score, None, loss, lr, speed, self.seconds, skipped)
        )
        shown = {"loss": f"{loss:.4g}", metric.name: metric.show(score), "tasks/s": f"{speed:.0f}"}
        progress.show(**shown)

    def _validate(self, progress: Progress) -> None:
        run, metric = self.run, self.run.metric
        val = estimate(run.scores("val", what="validation"))
        self._check_finite(f"validation {metric.name}", val.mean)
        self._record(Record(self.step, "val", val.mean, val.ci95, seconds=self.seconds))
        improved = self.best is None or metric.better(val.mean, self.best.val.mean)
        if improved:
            state = run.learner.state_dict()
            kept = {name: part for name, part in state.items() if name not in _TRAINING_STATE}
            self.best = Best(self.step, val, deepcopy(kept))
            self._write(run.folder / BEST)
        progress.say(
            f"step {self.step}: validation {metric.name} "
            f"{metric.show(val.mean, val.ci95)}{' (best)' if improved else ''}"
        )

    def _record(self, record: Record) -> None:
        self.history.append(record)
        for log in self.logs:
            log.write(record)

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"step {self.step}: the {what} is {value}; training has diverged. Lower inner_lr "
                f"(now {self.run.config.inner_lr}) or lr (now {self.run.config.lr})."
            )

    def save(self) -> None:
        """Writes a numbered checkpoint, and removes the oldest ones beyond `config.keep`."""
        self._write(step_path(self.run.folder, self.step))
        if self.run.writes:
            prune(self.run.folder, self.run.config.keep)

    def _write(self, path: Path) -> None:
        state = self.state_dict()  # a collective operation
        if self.run.writes:
            save_checkpoint(path, state)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue: configuration, learner, schedule, log, generators."""
        best, source = self.best, self.run.sources["train"]
        return {
            "config": self.run.config.to_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "learner": self.run.learner.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "meter": self._meter.state_dict(),
            "history": [record.to_list() for record in self.history],
            "best": None if best is None else [best.step, asdict(best.val), best.learner],
            "tasks": source.state_dict() if isinstance(source, FeedbackSource) else {},
            "rng": torch_generators(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; the configuration stays that of this trainer."""
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.run.learner.load_state_dict(state["learner"])
        self._scheduler.load_state_dict(state["scheduler"])
        self._meter.load_state_dict(state["meter"], self.run.device)
        self.history = [Record(*row) for row in state["history"]]
        if state["best"] is not None:
            step, val, learner = state["best"]
            self.best = Best(step, Estimate(**val), learner)
        source, saved = self.run.sources["train"], state.get("tasks")
        if saved and isinstance(source, FeedbackSource):
            source.load_state_dict(saved)
        set_torch_generators(state["rng"])


def _lr_factor(config: TrainConfig) -> Callable[[int], float]:
    # A function of the step alone: a run resumed with more steps has the longer run's schedule.
    if config.lr_schedule == "none":
        return schedule("constant")
    return schedule(f"{config.lr_schedule}:{config.steps}")
