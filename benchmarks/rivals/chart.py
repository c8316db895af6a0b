"""Bar chart of a comparison."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

FLOOR = "matrix_floor"
BASE = "learn2learn_maml"  # 1 on the axis
# Contenders on the chart, in the order of their colours.
LABELS = {
    "fastmeta_kept": "fastmeta, freed memory kept",
    "fastmeta_engine": "fastmeta",
    "jax_jit": "JAX, jit",
    "torch_func": "torch.func",
    "plain_autograd": "PyTorch autograd",
    "higher_loop": "higher",
    "torchopt_meta": "TorchOpt",
}


def draw(rows: Sequence[tuple[str, str, float]], path: Path) -> None:
    """Draws ``(case, contender, speedup)`` as bars grouped by case, on a logarithmic axis.

    The time that the matrix products alone take is a tick across the bars of its case.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    cases = list(dict.fromkeys(case for case, _, _ in rows))
    found = {(case, name): value for case, name, value in rows}
    known = {name for _, name, _ in rows} - {FLOOR, BASE}
    contenders = [*(n for n in LABELS if n in known), *sorted(known - {*LABELS})]
    height = 0.84 / len(contenders)
    inches = 1.2 + len(cases) * (0.14 * len(contenders) + 0.12)
    figure = Figure(figsize=(9, inches), layout="constrained")
    axes = figure.subplots()
    for k, name in enumerate(contenders):
        bars = {i + k * height: found[c, name] for i, c in enumerate(cases) if (c, name) in found}
        label = LABELS.get(name, name)
        axes.barh(list(bars), list(bars.values()), height, label=label, color=f"C{k}")
    floors = {i: found[c, FLOOR] for i, c in enumerate(cases) if (c, FLOOR) in found}
    if floors:
        low, high = -height / 2, (len(contenders) - 0.5) * height
        axes.vlines(
            list(floors.values()), [i + low for i in floors], [i + high for i in floors],
            color="#333333", label="bound: the matrix products alone",
        )  # fmt: skip
    middle = (len(contenders) - 1) * height / 2
    axes.set_yticks([i + middle for i in range(len(cases))], [_wrapped(c) for c in cases])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.set_ylim(len(cases) - 0.1, -0.2)
    axes.set_xlabel("times faster than learn2learn")
    axes.axvline(1, color="#333333", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


def _wrapped(case: str) -> str:
    return textwrap.fill(case, 34, break_on_hyphens=False)
