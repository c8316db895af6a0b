"""The plot and the page of the GSL study, from the rows of its CSV alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

from gsl_candidates import SHOWN, candidates

from fastmeta.train.metrics import ACCURACY, MSE, Metric

Row = dict[str, str]
METRICS = {"omniglot": ACCURACY, "sine": MSE}
TITLES = {"omniglot": "Omniglot, 5-way 1-shot", "sine": "Sine regression"}

PAGE = """# The variants of GSL, measured

**Our reconstruction** of GSL/AHE (Tak & Hong 2024, doi 10.3390/electronics13030535): only the
paper's abstract and headings could be had, and nothing here reproduces a number of it.
`python benchmarks/gsl_study.py` writes this page; every number is one of
[the measured ones]({csv}).

{steps} meta-steps by the recipe of `fastmeta train`, all candidates with the same tasks and initial
weights; seeds {seeds}. R0 is FOMAML, R6 the exact meta-gradient of MAML; the number behind R1 is
`eta`. `gsl_candidates.py` has the options of each, `fastmeta.metagrad.gsl_variant` what they mean.

- **accuracy**, **mse**: on the test tasks after adaptation, with the 95 % interval over tasks; of
  several seeds the mean, and in brackets the lowest and the highest.
- **cosine**, **length**: of the meta-gradient with the exact one, and as a multiple of it, mean
  over the run; in brackets at its end. On meta-batches that nothing is trained on.
- **by task**: the cosine of single tasks' meta-gradients, mean over the run.
- **time**: of a step, as a multiple of FOMAML's in the same run; **memory**: its peak. Both of the
  loop engine, one run each.

![Cosine over training]({plot})

{tables}"""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Cosine with the exact meta-gradient over training; one line a variant, mean over seeds."""
    from matplotlib.figure import Figure

    names = _unique(rows, "dataset")
    figure = Figure(figsize=(6 * len(names), 7), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False, sharex="col")
    kinds = (("cosine", "combined"), ("task_cosine", "task by task"))
    for (i, (column, title)), (j, dataset) in product(enumerate(kinds), enumerate(names)):
        axes = panels[i][j]
        for k, name in enumerate(SHOWN):
            found = [r for r in rows if (r["dataset"], r["candidate"]) == (dataset, name)]
            steps = sorted({int(r["step"]) for r in found})
            means = [_mean(r[column] for r in found if int(r["step"]) == step) for step in steps]
            axes.plot(steps, means, f"C{k}", marker=".", label=name)
        axes.set(title=f"{TITLES[dataset]}, {title}", ylabel="cosine with the exact meta-gradient")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-1]:
        axes.set(xlabel="meta-step")
    panels[0][-1].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def write_page(rows: Sequence[Row], path: Path, plot: Path) -> None:
    """The page, which shows the plot; the CSV lies beside the plot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    link = Path(os.path.relpath(plot, path.parent)).as_posix()
    page = PAGE.format(
        csv=Path(link).with_suffix(".csv").as_posix(),
        plot=link,
        steps=", ".join(_unique(rows, "steps")),
        seeds=", ".join(_unique(rows, "seed")),
        tables="\n".join(_table(rows, dataset) for dataset in _unique(rows, "dataset")),
    )
    path.write_text(page)


def _table(rows: Sequence[Row], dataset: str) -> str:
    metric = METRICS[dataset]
    lines = [
        f"## {TITLES[dataset]}\n",
        f"| candidate | {metric.name} | cosine | length | by task | time | memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    known = {row["candidate"] for row in rows if row["dataset"] == dataset}
    for name in filter(known.__contains__, candidates(dataset, steps=1)):
        found = [r for r in rows if (r["dataset"], r["candidate"]) == (dataset, name)]
        last = [row for row in found if row["score"]]
        cosine, length = (
            f"{_mean(r[k] for r in found):.2f} ({_mean(r[k] for r in last):.2f})"
            for k in ("cosine", "length")
        )
        task = _mean(row["task_cosine"] for row in found)
        time, memory = (_mean(row[k] for row in last) for k in ("time", "peak_mb"))
        numbers = f"{cosine} | {length} | {task:.2f} | {time:.2f}x | {memory:.3g} MB |"
        lines.append(f"| {name} | {_score(last, metric)} | {numbers}")
    return "\n".join([*lines, ""])


def _score(last: Sequence[Row], metric: Metric) -> str:
    scores = [float(row["score"]) for row in last]
    if len(scores) == 1:
        return metric.show(scores[0], float(last[0]["ci95"]))
    return (
        f"{metric.show(fmean(scores))} ({metric.show(min(scores))} to {metric.show(max(scores))})"
    )


def _unique(rows: Iterable[Row], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))


def _mean(numbers: Iterable[str]) -> float:
    return fmean(map(float, numbers))
