"""What the examples share: data, intervals over seeds, tables, pictures and files."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from scipy.stats import t as student
from torch import Tensor, nn

import fastmeta

Scores = dict[str, dict[str, float]]  # by method, by measure


class Result(NamedTuple):
    """The result of one seed.

    Attributes:
        scores: by method, by measure.
        picture: what the example draws.
    """

    scores: Scores
    picture: Any


def main(
    run: Callable[[int, bool], Result],
    draw: Callable[[Figure, Any], None],
    compare: tuple[str, str],
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The command line of an example.

    Args:
        run: of seed and whether to run in small.
        draw: draws the picture of the first seed.
        compare: method and control, of whose difference there is an interval, too.
        argv: arguments, by default those of the process.

    Returns:
        What is written to the JSON file.
    """
    name = Path(sys.modules[run.__module__].__file__ or "").stem
    page = name.replace("_", "-")
    parser = argparse.ArgumentParser(prog=f"python -m examples.{name}")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds")
    parser.add_argument("--out", type=Path, help="folder of the results; none are written without")
    parser.add_argument("--quick", action="store_true", help="run in small, in seconds")
    given = parser.parse_args(argv)
    results = []
    for seed in given.seed:
        torch.manual_seed(seed)
        results.append(run(seed, given.quick))
        print(f"seed {seed}: {json.dumps(results[-1].scores)}", file=sys.stderr)
    scores = [result.scores for result in results]
    found = {
        "command": " ".join([parser.prog, *(sys.argv[1:] if argv is None else argv)]),
        "seeds": given.seed,
        "scores": {
            method: {measure: [s[method][measure] for s in scores] for measure in measures}
            for method, measures in scores[0].items()
        },
        "compare": list(compare),
    }
    print(table(found))
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / f"{page}.json").write_text(json.dumps(found, indent=1) + "\n")
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        draw(figure, results[0].picture)
        figure.savefig(given.out / f"{page}.png", dpi=110)
    return found


def table(found: dict[str, Any]) -> str:
    """Means over seeds with 95 % intervals, as Markdown; the last row is a paired difference."""
    scores = found["scores"]
    measures = list(dict.fromkeys(m for row in scores.values() for m in row))
    lines = ["| | " + " | ".join(measures) + " |", "| --- |" + " ---: |" * len(measures)]
    for method, row in scores.items():
        cells = [interval(row[m]) if m in row else "" for m in measures]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    own, control = (scores[method] for method in found["compare"])
    cells = [
        interval([a - b for a, b in zip(own[m], control[m], strict=True)])
        if m in own and m in control
        else ""
        for m in measures
    ]
    lines.append(f"| {' minus '.join(found['compare'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of the 95 % t-interval, to two digits of the latter."""
    if len(values) < 2:
        return f"{values[0]:.4g}"
    half = student.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    digits = 4 if half == 0 else max(0, 1 - math.floor(math.log10(half)))
    return f"{mean(values):.{digits}f} ± {half:.{digits}f}"


def histogram(figure: Figure, values: dict[str, Tensor], x: str, y: str) -> None:
    """Draws a histogram of several groups of values."""
    axes = figure.subplots()
    axes.hist([v.numpy() for v in values.values()], 40, label=list(values))
    axes.set(xlabel=x, ylabel=y)
    axes.legend()


def lines(
    figure: Figure, curves: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str
) -> None:
    """Draws curves, with the legend beside them."""
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), label=name)
    axes.set(xlabel=x, ylabel=y)
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)


def mnist(split: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random images `(count, 784)`, standardized, and their labels; all ten digits.

    `FASTMETA_DATA` names the folder of the files.
    """
    held_out = range(10) if split == "test" else ()
    data = fastmeta.data.load_mnist(
        os.environ["FASTMETA_DATA"], split, rotations=False, inversion=False,
        val_classes=(), test_classes=held_out,
    )  # fmt: skip
    chosen = torch.randperm(len(data), generator=generator)[:count]
    return (data.inputs(chosen).flatten(1) - 0.1307) / 0.3081, data.labels[chosen]


def python_sources(smallest: int) -> list[Tensor]:
    """The modules of Python's standard library as ASCII codes, those of at least so many bytes."""
    texts = [path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py"))]
    return [torch.tensor([min(c, 127) for c in t]) for t in texts if len(t) >= smallest]


def language_model(window: int) -> nn.Module:
    """Predicts an ASCII code from the `window` codes before it."""
    return nn.Sequential(
        nn.Embedding(128, 16), nn.Flatten(), nn.Linear(16 * window, 64), nn.GELU(),
        nn.Linear(64, 128),
    )  # fmt: skip
