"""Bar chart of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw(rows: Sequence[tuple[str, str, float]], path: Path) -> None:
    """Draws ``(case, contender, speedup)`` as bars grouped by case, on a logarithmic axis."""
    cases = list(dict.fromkeys(case for case, _, _ in rows))
    contenders = list(dict.fromkeys(name for _, name, _ in rows))
    height = 0.8 / len(contenders)
    figure, axes = plt.subplots(figsize=(9, 0.5 + 0.22 * len(rows)))
    for k, name in enumerate(contenders):
        found = {case: value for case, other, value in rows if other == name}
        places = [i + k * height for i, case in enumerate(cases) if case in found]
        axes.barh(places, [found[c] for c in cases if c in found], height, label=name)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(cases))], cases)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("times faster than learn2learn")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
