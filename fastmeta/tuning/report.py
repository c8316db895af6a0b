"""Reports of a search for a pattern: table, CSV, JSON and plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from fastmeta.evaluation import Estimate, Metric
from fastmeta.train._atomic_files import write_atomic
from fastmeta.tuning.search import Trial, TunedPattern

ROLES = ("full", "chosen", "best")
_COLOURS = {"full": "#333333", "chosen": "#2a7f62", "best": "#c1292e"}


@dataclass(frozen=True)
class Search:
    """A search, and its outcome on test tasks.

    Attributes:
        tuned: the search.
        test: the score of each pattern in `ROLES`, by its bits.
        change: the mean difference per task from the score of all layers.
    """

    tuned: TunedPattern
    test: Mapping[str, Estimate]
    change: Mapping[str, Estimate]

    def role(self, name: str) -> Trial:
        """The trial of all layers (`"full"`), the `"chosen"` or the `"best"` one."""
        trial: Trial = getattr(self.tuned, name)
        return trial

    def speedup(self, trial: Trial) -> float:
        """How many times faster than all layers."""
        return self.tuned.full.seconds / trial.seconds

    def summary(self) -> dict[str, Any]:
        """The content of the JSON file."""
        roles = {
            name: {
                "pattern": trial.pattern,
                "seconds": trial.seconds,
                "speedup": self.speedup(trial),
                "val": asdict(trial.score),
                "test": asdict(self.test[trial.pattern]),
                "change": asdict(self.change[trial.pattern]),
            }
            for name in ROLES
            for trial in [self.role(name)]
        }
        tuned = self.tuned
        front = [trial.pattern for trial in tuned.front]
        return {"inner_steps": tuned.steps, "layers": list(tuned.layers), **roles, "front": front}


def table(searches: Sequence[Search], metric: Metric) -> str:
    """The patterns on the front and those with a role, as text."""
    return "\n".join(line for search in searches for line in _lines(search, metric))


def _lines(search: Search, metric: Metric) -> list[str]:
    tuned, roles = search.tuned, {name: search.role(name) for name in ROLES}
    lines = [
        f"inner steps: {tuned.steps}; layers: {', '.join(tuned.layers)}",
        f"  {'pattern':<12}{'ms':>9}{'speed':>9}  {metric.name}, validation tasks",
    ]
    for trial in tuned.trials:
        marks = [name for name, t in roles.items() if t is trial]
        if marks or trial in tuned.front:
            score = metric.show(trial.score.mean, trial.score.ci95)
            time = f"{1e3 * trial.seconds:>9.2f}{search.speedup(trial):>8.2f}x"
            lines.append(f"  {trial.pattern:<12}{time}  {score:<20}{', '.join(marks)}".rstrip())
    lines.append(f"  {'pattern':<12}{'':>18}  {metric.name}, test tasks")
    for name, trial in roles.items():
        test, change = search.test[trial.pattern], search.change[trial.pattern]
        score = metric.show(test.mean, test.ci95)
        against = f", {metric.show(change.mean, change.ci95)} against full"
        row = f"  {trial.pattern:<12}{name:>18}  {score}"
        lines.append(row if trial is tuned.full else row + against)
    return lines


def write_csv(path: Path, searches: Sequence[Search], metric: Metric) -> None:
    """Writes one row per evaluated pattern."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["inner_steps", "pattern", metric.name, "ci95", "seconds", "speedup", "front"])
    for search in searches:
        for t in search.tuned.trials:
            front = int(t in search.tuned.front)
            score = [t.score.mean, t.score.ci95]
            rows.writerow(
                [search.tuned.steps, t.pattern, *score, t.seconds, search.speedup(t), front]
            )
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))


def draw(path: Path, searches: Sequence[Search], metric: Metric) -> None:
    """Plots score over time, one panel per search, with the Pareto front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(searches), 4.2), layout="constrained")
    panels: Any = figure.subplots(1, len(searches), squeeze=False)
    for axes, search in zip(panels[0], searches, strict=True):
        _panel(axes, search, metric)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=130)
    write_atomic(path, lambda file: file.write(png.getvalue()))


def _panel(axes: Any, search: Search, metric: Metric) -> None:
    def points(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
        return [1e3 * t.seconds for t in trials], [t.score.mean for t in trials]

    tuned = search.tuned
    axes.plot(*points(tuned.trials), "o", color="#9db4c0", label="patterns")
    axes.plot(*points(tuned.front), "-", color="#9db4c0", label="Pareto front")
    for name in ROLES[::-1]:
        trial = search.role(name)
        label = f"{name}, {trial.pattern}"
        axes.plot(*points([trial]), "o", color=_COLOURS[name], label=label)
    steps = f"{tuned.steps} inner step{'s' if tuned.steps > 1 else ''}"
    axes.set(title=steps, xlabel="ms to adapt to a task", ylabel=f"{metric.name}, validation tasks")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
