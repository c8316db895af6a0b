"""A table as a page: Markdown and a picture, from the CSVs of its results and costs."""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path
from typing import NamedTuple

from studies.cells import Results
from studies.plan import Row, Table

_HEAD = ("method", "{metric}", "seeds", "time a step", "peak memory", "cos to exact", "published")


class Score(NamedTuple):
    """A row over its seeds.

    Attributes:
        mean: over seeds.
        ci95: half the 95 % interval of that mean over test tasks.
        spread: standard deviation between seeds, 0 for one seed.
        seeds: how many.
        metric: ``"accuracy"`` or ``"mse"``.
    """

    mean: float
    ci95: float
    spread: float
    seeds: int
    metric: str


def write_page(table: Table, folder: Path) -> None:
    """Writes ``NAME.md`` and ``NAME.png`` beside the CSVs in ``folder``."""
    finished = Results(folder / f"{table.name}.csv", list(table.rows)).read()
    costs = _read_costs(folder / f"{table.name}-costs.csv")
    scores = {name: score for name in table.rows if (score := _score(name, finished))}
    metric = next((score.metric for score in scores.values()), "score")
    lines = [f"# {table.title}", "", _line([h.format(metric=metric) for h in _HEAD])]
    lines.append(_line(["---"] * len(_HEAD)))
    for row in table.rows.values():
        shown = _shown(row, scores.get(row.name), finished)
        lines.append(_line([row.label, *shown, *_costs(row, costs, table.reference)]))
    diverged = [f"{n} (seed {s})" for (n, s), r in finished.items() if r["status"] == "diverged"]
    if diverged:
        lines += ["", f"Diverged, and in no mean: {', '.join(diverged)}."]
    lines += ["", f"![{table.title}]({table.name}.png)", "", table.notes.strip(), ""]
    lines += [_origin(table, finished), ""]
    (folder / f"{table.name}.md").write_text("\n".join(lines))
    if scores:
        _draw(table, scores, folder / f"{table.name}.png")


def _origin(table: Table, finished: dict[tuple[str, int], dict[str, str]]) -> str:
    def span(column: str) -> str:
        found = [r[column] for r in finished.values()]
        return " to ".join(sorted({min(found, default="?"), max(found, default="?")}))

    return (
        "Time and memory are a meta-step's, time as a multiple of "
        f"{table.rows[table.reference].label}'s. Cosine: of the combined meta-gradient with the "
        "exact one of the same inner loop and equal weights, at the best checkpoint; where nothing "
        "is trained, at the first weights.\n\n"
        f"`python benchmarks/table.py benchmarks/tables/{table.name}.toml --data ROOT` makes this "
        f"page. Measured {span('date')} with torch {span('torch')}."
    )


def _score(name: str, finished: dict[tuple[str, int], dict[str, str]]) -> Score | None:
    found = [r for (row, _), r in finished.items() if row == name and r["status"] == "ok"]
    if not found:
        return None
    means = [float(r["mean"]) for r in found]
    # The seeds share their test tasks, so averaging them narrows nothing: the widest is honest.
    widest = max(float(r["ci95"]) for r in found)
    spread = statistics.stdev(means) if len(means) > 1 else 0.0
    return Score(statistics.fmean(means), widest, spread, len(means), found[0]["metric"])


def _shown(
    row: Row, score: Score | None, finished: dict[tuple[str, int], dict[str, str]]
) -> list[str]:
    """Score and seeds."""
    if score is not None:
        return [_show(score), str(score.seeds)]
    return ["diverged" if any(name == row.name for name, _ in finished) else "not run", ""]


def _costs(row: Row, costs: dict[str, dict[str, str]], reference: str) -> list[str]:
    """Time, memory, cosine and the published number."""
    own, base = costs.get(row.name), costs.get(reference)
    if not own or not base:
        return ["", "", "", row.published]
    time = f"{float(own['milliseconds']) / float(base['milliseconds']):.2f}x"
    return [time, f"{float(own['megabytes']):.3g} MB", own["cosine"], row.published]


def _show(score: Score) -> str:
    factor, unit = (100, " %") if score.metric == "accuracy" else (1, "")
    digits = 2 if score.metric == "accuracy" else 4
    spread = f", sd {factor * score.spread:.{digits}f}" if score.seeds > 1 else ""
    return f"{factor * score.mean:.{digits}f} ± {factor * score.ci95:.{digits}f}{spread}{unit}"


def _read_costs(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {r["row"]: r for r in csv.DictReader(file)}


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _draw(table: Table, scores: dict[str, Score], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.9 + 0.34 * len(scores)), layout="constrained")
    axes = figure.subplots()
    factor = 100 if next(iter(scores.values())).metric == "accuracy" else 1
    for place, score in enumerate(reversed(scores.values())):
        error = factor * math.hypot(score.ci95, score.spread)
        axes.errorbar(factor * score.mean, place, xerr=error, fmt="o", color="#2a7f62", capsize=3)
    axes.set_yticks(range(len(scores)), [table.rows[name].label for name in reversed(scores)])
    axes.set_xlabel("accuracy, %" if factor == 100 else "mean squared error")
    axes.set_title(table.title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)
