"""Plots of a run: its curves, scores by inner steps, and a test task with its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmeta.data import SineTasks
from fastmeta.evaluation import estimate, evaluate
from fastmeta.tasks import TaskBatch
from fastmeta.train._atomic_files import write_atomic
from fastmeta.train.builders import build_learner, build_module
from fastmeta.train.logs import Record
from fastmeta.train.progress import Progress
from fastmeta.train.run import Run

_RIGHT, _WRONG, _INK, _PALE = "#2a7f62", "#c1292e", "#333333", "#9db4c0"
_QUERIES = 4  # query images shown per class
_TASKS = 24  # test tasks of the curve over inner steps


def draw(path: Path, run: Run, history: Sequence[Record], results: Mapping[str, Any]) -> None:
    """Writes the plots as PNG.

    Args:
        path: of the file.
        run: trained; its learner adapts to test tasks.
        history: the records of the run.
        results: the content of `results.json`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    panels: Any = figure.subfigures(1, 3, width_ratios=(1, 0.8, 1.15))
    left, middle, right = panels
    _curves(left.subplots(), run, history, results)
    _inner_steps(middle.subplots(), run)
    task = run.sources["test"][0].part(0, 1)
    if run.config.dataset_spec.kind == "signals":
        _signal(right, run, task)
    elif run.config.regression:
        _regression(right.subplots(), run, task)
    elif isinstance(task.support_x, Tensor) and task.support_x.dim() == 5:
        _episode(right, run, task)
    else:
        _confusion(right.subplots(), run, task)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=130)
    write_atomic(path, lambda file: file.write(png.getvalue()))


def _curves(axes: Any, run: Run, history: Sequence[Record], results: Mapping[str, Any]) -> None:
    inner_steps = {"train": run.config.inner_steps, "val": run.config.eval_inner_steps}
    styles: dict[str, dict[str, Any]] = {
        "train": {"color": _PALE},
        "val": {"color": _INK, "marker": "o", "markersize": 4},
    }
    for split, style in styles.items():
        rows = [r for r in history if r.split == split]
        if rows:
            count = inner_steps[split]
            label = f"{split}, {count} inner step{'s' * (count != 1)}"
            axes.plot([r.step for r in rows], [r.score for r in rows], label=label, **style)
    levels = {"test": ("test", _RIGHT), "untrained": ("untrained network, test", _WRONG)}
    for name, (label, color) in levels.items():
        if name in results:
            mean, ci95 = results[name]["mean"], results[name]["ci95"]
            axes.axhline(mean, color=color, label=f"{label}: {run.metric.show(mean, ci95)}")
            axes.axhspan(mean - ci95, mean + ci95, color=color, alpha=0.15, linewidth=0)
    _chance(axes, run)
    axes.set(xlabel="meta-step", ylabel=f"query {run.metric.name} after adaptation")
    axes.set_title("Meta-training")
    _finish(axes)


def _chance(axes: Any, run: Run) -> None:
    if not run.config.regression:
        axes.axhline(1 / run.config.ways, color=_INK, linestyle=":", label="chance")


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(facecolor="white", edgecolor="none", framealpha=0.8, fontsize=8)


def _inner_steps(axes: Any, run: Run) -> None:
    """Scores by inner steps, with the 95 % interval, of the trained and the untrained network."""
    config, source = run.config, run.sources["test"]
    learners = {"trained": (run.learner, _RIGHT)}
    if config.untrained:
        untrained = build_learner(config, build_module(config, source, run.device))
        learners["untrained"] = (untrained, _WRONG)
    last, tasks = config.eval_inner_steps, min(_TASKS, config.test_tasks)
    counts = [
        0,
        *(2**k for k in range(last.bit_length()) if 2**k < last),
        *([last] if last else []),
    ]
    with Progress("scores by inner steps", len(learners) * len(counts), unit="count") as progress:
        for i, (label, (learner, color)) in enumerate(learners.items()):
            found = []
            for k, steps in enumerate(counts):
                scored = evaluate(
                    learner, source, count=tasks,
                    metric=run.metric, steps=steps, head=config.co_test,
                )  # fmt: skip
                found.append(estimate(scored.scores))
                progress.reach(i * len(counts) + k + 1)
            low, high = ([e.mean + s * e.ci95 for e in found] for s in (-1, 1))
            axes.plot(counts, [e.mean for e in found], "o-", color=color, markersize=4, label=label)
            axes.fill_between(counts, low, high, color=color, alpha=0.15, linewidth=0)
    _chance(axes, run)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(
        title=f"Adaptation, {tasks} test tasks",
        xlabel="inner steps",
        ylabel=f"query {run.metric.name}",
    )
    _finish(axes)


def _regression(axes: Any, run: Run, task: TaskBatch) -> None:
    learner, head, steps = run.learner, run.config.co_test, run.config.eval_inner_steps
    if isinstance(run.sources["test"], SineTasks):
        task = _dense(task)
    order = task.query_x[0, :, 0].argsort()
    x, y = (part[0, order, 0].cpu() for part in (task.query_x, task.query_y))
    for count, label, style in ((0, "before", "--"), (steps, f"after {steps} steps of", "-")):
        output = learner.predict(task, count, head)[0, order, 0].cpu()
        axes.plot(x, output, style, color=_RIGHT, label=f"prediction {label} adaptation")
    axes.plot(x, y, color="#bbbbbb", linewidth=3, zorder=0, label="truth")
    axes.plot(task.support_x[0].cpu(), task.support_y[0].cpu(), "o", color=_WRONG, label="support")
    axes.set(title="A test task", xlabel="x", ylabel="y")
    _finish(axes)


def _signal(figure: Any, run: Run, task: TaskBatch) -> None:
    steps, height = run.config.eval_inner_steps, len(task.query_x[0, :, 0].unique())
    shown = {"truth": task.query_y}
    for count in (0, steps):
        shown[f"after {count} inner steps"] = run.learner.predict(task, count)
    for axes, (title, values) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        show_image(axes, values[0].mT.unflatten(1, (height, -1)), _RIGHT, title)
    figure.suptitle("A test task")


def _dense(task: TaskBatch) -> TaskBatch:
    """A sine task with queries on a grid; the points determine `y = a sin(x) + b cos(x)`."""
    x, y = (torch.cat(p, 1)[0].double() for p in zip(
        (task.support_x, task.support_y), (task.query_x, task.query_y), strict=True
    ))  # fmt: skip
    sine = torch.linalg.lstsq(torch.cat((x.sin(), x.cos()), 1), y).solution
    grid = torch.linspace(float(x.min()), float(x.max()), 200, dtype=x.dtype, device=x.device)
    grid = grid[:, None]
    truth = torch.cat((grid.sin(), grid.cos()), 1) @ sine
    query_x, query_y = (part[None].to(task.query_x.dtype) for part in (grid, truth))
    return TaskBatch(task.support_x, task.support_y, query_x, query_y)


def _confusion(axes: Any, run: Run, task: TaskBatch) -> None:
    ways = run.config.ways
    outputs = run.learner.predict(task, run.config.eval_inner_steps, run.config.co_test)
    predicted, truth = outputs[0].argmax(-1).cpu(), task.query_y[0].cpu()
    counts = torch.bincount(truth * ways + predicted, minlength=ways**2).reshape(ways, ways)
    axes.imshow(counts.numpy(), cmap="Greens")
    for row, column in torch.cartesian_prod(torch.arange(ways), torch.arange(ways)).tolist():
        count = int(counts[row, column])
        color = "white" if 2 * count > counts.max() else _INK
        axes.text(column, row, count, ha="center", va="center", color=color)
    axes.set(xlabel="predicted class", ylabel="class", xticks=range(ways), yticks=range(ways))
    axes.set_title("Queries of a test task")


def _episode(figure: Any, run: Run, task: TaskBatch) -> None:
    config = run.config
    outputs = run.learner.predict(task, config.eval_inner_steps, config.co_test)
    predicted = outputs[0].argmax(-1).cpu()
    support_y, query_y = task.support_y[0].cpu(), task.query_y[0].cpu()
    shown = min(_QUERIES, config.eval_queries)
    grid = figure.subplots(config.ways, shown + 1, squeeze=False)
    for way, row in enumerate(grid):
        first = int((support_y == way).nonzero()[0, 0])
        show_image(row[0], task.support_x[0, first], _INK, f"support {way}")
        for axes, query in zip(
            row[1:], (query_y == way).nonzero()[:shown, 0].tolist(), strict=True
        ):
            guess = int(predicted[query])
            show_image(
                axes,
                task.query_x[0, query],
                _RIGHT if guess == way else _WRONG,
                f"predicted {guess}",
            )
    figure.suptitle("A test task: one support image per class, and queries as predicted")


def show_image(axes: Any, image: Tensor, color: str, title: str) -> None:
    """Shows an image `(C, H, W)` in a coloured frame."""
    pixels = image.detach().cpu().float()
    low, high = pixels.min(), pixels.max()
    pixels = ((pixels - low) / (high - low).clamp(min=1e-6)).permute(1, 2, 0)
    axes.imshow(pixels.squeeze(-1).numpy(), cmap="gray", interpolation="nearest")
    axes.set_title(title, fontsize=8, color=color, pad=2)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(color)
        spine.set_linewidth(2)
