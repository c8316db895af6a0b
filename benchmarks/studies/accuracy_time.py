"""Draws accuracy against training time by method, from the logs of the Omniglot runs.

    python -m benchmarks.studies.accuracy_time

Time is the number of meta-steps times the interleaved time of a step in ``gsl-step-cpu.txt``, for
the network and tasks of the runs: these took turns on a shared machine, whose load would decide
otherwise. Writes ``benchmarks/results/accuracy-time.png``.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

RESULTS = Path("benchmarks/results")
CASE = "one meta-step, Omniglot strided, 5-way 1-shot, 5 queries, T=4, K=1"
TASKS, TASKS_TIMED = 8, 4  # of a meta-step in the runs, and in the measurement
# Names of the logs, and of the rows of the measurement.
METHODS = {"fomaml": "FOMAML", "gsl-correction": "GSL, correction", "gsl": "GSL", "maml": "MAML"}


def main() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for k, (name, label) in enumerate(METHODS.items()):
        seconds = _seconds_per_step(label)
        points = _validation(RESULTS / "omniglot" / f"{name}-log.csv")
        times = [step * seconds for step, _, _ in points]
        scores = [100 * mean for _, mean, _ in points]
        low, high = ([100 * (mean + s * ci95) for _, mean, ci95 in points] for s in (-1, 1))
        axes.plot(times, scores, color=f"C{k}", marker=".", label=label)
        axes.fill_between(times, low, high, color=f"C{k}", alpha=0.12, linewidth=0)
        end = f"{times[-1]:5.0f} s, {scores[-1]:.1f} %"
        print(f"{label:<16}{1e3 * seconds:6.1f} ms per step, {end}")
    axes.set(
        title="Omniglot, 5-way 1-shot",
        xlabel="training time, seconds of one core",
        ylabel="accuracy on validation tasks, %",
    )
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(RESULTS / "accuracy-time.png", dpi=130)


def _seconds_per_step(label: str) -> float:
    text = (RESULTS / "gsl-step-cpu.txt").read_text()
    table = text[text.index(CASE) :]
    match = re.search(rf"^{re.escape(label)} +([\d.]+) ", table, re.M)
    assert match, f"{label} is not in the measurement"
    return float(match[1]) / 1e3 * TASKS / TASKS_TIMED


def _validation(log: Path) -> list[tuple[int, float, float]]:
    """Meta-steps, accuracy and half the width of its 95 % interval."""
    with log.open(newline="") as file:
        return [
            (int(row["step"]), float(row["accuracy"]), float(row["ci95"]))
            for row in csv.DictReader(file)
            if row["split"] == "val"
        ]


if __name__ == "__main__":
    main()
