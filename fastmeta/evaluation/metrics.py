"""Scores of query outputs, one per task, and their mean with a confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.engines import Outputs
from fastmeta.tasks import Examples

Z95 = 1.96


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks.

    Attributes:
        mean: over the tasks.
        ci95: half the width of the 95 % interval, `1.96 * std / sqrt(tasks)`.
        tasks: number of tasks.
    """

    mean: float
    ci95: float
    tasks: int


def estimate(scores: Tensor) -> Estimate:
    """Mean and 95 % interval of per-task scores `(tasks,)`, at least two; one host sync."""
    values = scores.double().cpu()
    tasks = len(values)
    return Estimate(
        mean=values.mean().item(), ci95=Z95 * values.std().item() / math.sqrt(tasks), tasks=tasks
    )


@dataclass(frozen=True, repr=False)
class Metric:
    """A score of query outputs.

    Attributes:
        name: `"accuracy"`, `"mse"` or `"psnr"`.
        per_task: from outputs and targets, whose shapes begin with `(T, n_query)`, to `(T,)`.
        higher_is_better: whether a higher mean is better.
    """

    name: str
    per_task: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool

    def scores(self, outputs: Outputs, targets: Examples) -> Tensor:
        """The scores `(T,)` of the outputs for a meta-batch, see `StepResult.query_output`.

        Raises:
            TypeError: if the targets are not tensors.
        """
        if isinstance(outputs, list):
            pairs = zip(outputs, targets, strict=True)
            return torch.cat([self.scores(output[None], y[None]) for output, y in pairs])
        if not isinstance(targets, Tensor):
            raise TypeError(
                f"the metric {self.name!r} compares outputs with targets; expected a tensor in "
                f"query_y, got {type(targets).__name__}."
            )
        return self.per_task(outputs, targets)

    def __repr__(self) -> str:
        return f"Metric({self.name})"

    def better(self, new: float, old: float) -> bool:
        """Whether `new` is strictly better than `old`."""
        return new > old if self.higher_is_better else new < old

    def loss(self, new: float, old: float) -> float:
        """How much worse `new` is, in percent of all queries (accuracy) or of `old` (others)."""
        if self.name == "accuracy":
            return 100 * (old - new)
        return 100 * (1 - new / old if self.higher_is_better else new / old - 1)

    def show(self, mean: float, ci95: float | None = None) -> str:
        """A mean as text, such as `"97.31 ± 0.42 %"` or `"0.0312 ± 0.0021"`."""
        if self.name == "accuracy":
            interval = "" if ci95 is None else f" ± {100 * ci95:.2f}"
            return f"{100 * mean:.2f}{interval} %"
        if self.name == "psnr":
            return f"{mean:.2f}{'' if ci95 is None else f' ± {ci95:.2f}'} dB"
        return f"{mean:.4g}" if ci95 is None else f"{mean:.4g} ± {ci95:.2g}"


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).float().mean(1)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets, reduction="none").flatten(1).mean(1)


def _psnr(outputs: Tensor, targets: Tensor) -> Tensor:
    return -10 * _squared_error(outputs, targets).log10()


ACCURACY = Metric("accuracy", _accuracy, higher_is_better=True)
"""The fraction of queries whose largest output is that of their class."""
MSE = Metric("mse", _squared_error, higher_is_better=False)
"""The mean squared error."""
PSNR = Metric("psnr", _psnr, higher_is_better=True)
"""The peak signal-to-noise ratio of values in [0, 1], in dB; the mean is over tasks."""
METRICS = {metric.name: metric for metric in (ACCURACY, MSE, PSNR)}
"""The metrics by name."""
