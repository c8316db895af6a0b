"""Plot of a run: its curves, and a test task with its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmeta.tasks import TaskBatch
from fastmeta.train._atomic_files import write_atomic
from fastmeta.train.logs import Record
from fastmeta.train.run import Run

_RIGHT, _WRONG, _INK, _PALE = "#2a7f62", "#c1292e", "#333333", "#9db4c0"
_QUERIES = 4  # query images shown per class


def draw(path: Path, run: Run, history: Sequence[Record]) -> None:
    """Writes the plot as PNG.

    Args:
        path: of the file.
        run: trained; its learner adapts to the first test task.
        history: the records of the run.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels: Any = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    left, right = panels
    _curves(left.subplots(), run, history)
    task = run.sources["test"][0].part(0, 1)
    if run.config.regression:
        _regression(right.subplots(), run, task)
    elif task.support_x.dim() == 5:
        _episode(right, run, task)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=130)
    write_atomic(path, lambda file: file.write(png.getvalue()))


def _curves(axes: Any, run: Run, history: Sequence[Record]) -> None:
    inner_steps = {"train": run.config.inner_steps, "val": run.config.eval_inner_steps}
    styles: dict[str, dict[str, Any]] = {
        "train": {"color": _PALE},
        "val": {"color": _INK, "marker": "o", "markersize": 4},
    }
    for split, style in styles.items():
        rows = [r for r in history if r.split == split]
        if rows:
            label = f"{split}, {inner_steps[split]} inner steps"
            axes.plot([r.step for r in rows], [r.score for r in rows], label=label, **style)
    axes.set(xlabel="meta-step", ylabel=f"query {run.metric.name} after adaptation")
    axes.set_title("Meta-training")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _regression(axes: Any, run: Run, task: TaskBatch) -> None:
    learner, head, steps = run.learner, run.config.co_test, run.config.eval_inner_steps
    order = task.query_x[0, :, 0].argsort()
    x, y = (part[0, order, 0].cpu() for part in (task.query_x, task.query_y))
    for count, label, style in ((0, "before", "--"), (steps, f"after {steps} steps of", "-")):
        output = learner.predict(task, count, head)[0, order, 0].cpu()
        axes.plot(x, output, style, color=_RIGHT, label=f"prediction {label} adaptation")
    axes.plot(x, y, color="#bbbbbb", linewidth=3, zorder=0, label="truth")
    axes.plot(task.support_x[0].cpu(), task.support_y[0].cpu(), "o", color=_WRONG, label="support")
    axes.set(title="A test task", xlabel="x", ylabel="y")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


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
                axes, task.query_x[0, query], _RIGHT if guess == way else _WRONG, f"as {guess}"
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
