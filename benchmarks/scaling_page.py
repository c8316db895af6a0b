"""What the communication model predicts from the links that ``scaling.py`` measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmeta.distributed import cost
from fastmeta.distributed._cost import Cost

TASKS = 4  # a rank
RANKS = (2, 8, 32, 128, 512, 1000)
# Parameters of the smaller MLP, of Conv4-64 on Omniglot and of a ResNet-12, about.
ASSUMED_PARAMS = (1_761, 113_000, 8_000_000)
COLLECTIVES: dict[str, Callable[[float, int], Cost]] = {
    "all_reduce": cost.all_reduce,
    "all_gather": cost.all_gather,
    "all_to_all": cost.all_to_all,
    "broadcast": cost.broadcast,
}
PLANS: dict[str, Callable[[int, int, int], cost.Plans]] = {
    "mean": cost.mean,
    "GSL": cost.mean,
    "Gradient Agreement": lambda *sizes: cost.similarity(*sizes, inner=True),
    "IMTL-G": cost.gram,
}


@dataclass(frozen=True)
class Links:
    """Seconds of a message, of a number (four bytes) and of a product that is added up."""

    message: float
    number: float
    product: float

    def exchange(self, method: str, params: int, ranks: int) -> tuple[cost.Plan, float]:
        """The plan of a meta-step, and its seconds beyond those of a rank by itself."""
        plans = PLANS[method](TASKS * ranks, params, ranks)
        plan = cost.cheapest(plans)
        alone = PLANS[method](TASKS, params, 1)[plan].products * self.product
        return plan, plans[plan].time(self.message, self.number, self.product) - alone


# Not measured: see the page.
ASSUMED = Links(1e-5, 4 / 25e9, 4e-13)


def fit(rows: Sequence[dict[str, Any]], ranks: int) -> Links:
    """The links that explain bare collectives best, by relative least squares."""
    links = [r for r in rows if r["kind"] == "link" and r["ranks"] == ranks]
    counted = [
        (COLLECTIVES[r["name"]](r["numbers"], ranks), float(r["seconds"]))
        for r in links
        if r["name"] in COLLECTIVES
    ]
    relative = np.array([[c.messages / s, c.numbers / s] for c, s in counted])
    message, number = np.linalg.lstsq(relative, np.ones(len(relative)), rcond=None)[0]
    gram = max((r for r in links if r["name"] == "gram"), key=lambda r: int(r["numbers"]))
    products = 16 * 17 / 2 * int(gram["numbers"]) / 16
    return Links(float(message), float(number), float(gram["seconds"]) / products)


def page(facts: str, rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of what was measured and what follows from it."""
    sizes = sorted({r["ranks"] for r in rows})
    links = {size: fit(rows, size) for size in sizes}
    parts = [
        "# Scaling, measured and predicted",
        f"{facts} `python benchmarks/scaling.py` makes this page.",
        "## Links",
        _table(
            ["processes", "a message, us", "GB/s", "products, 1e9/s"],
            [
                [n, f"{x.message * 1e6:.0f}", f"{4e-9 / x.number:.2f}", f"{1e-9 / x.product:.1f}"]
                for n, x in links.items()
            ],
        ),
        "## Steps",
        "Alone: a rank's own tasks without exchange, after which ranks wait for one another (one "
        "number is summed). Predicted: that and the exchange by the model. Medians; from round to "
        "round the slowest rank counts.",
        _table(
            [
                *("network", "method", "processes", "plan", "alone, ms", "sharded, ms"),
                *("predicted, ms", "measured / predicted"),
            ],
            list(_steps(rows, links)),
        ),
        "## Overlap",
        f"2 processes, {TASKS} rows of 2^18 numbers: all are exchanged after the tasks, or each "
        "while the next task is computed; below, the mean in one piece, or in four, each summed "
        "over ranks while the next is combined.",
        _table(
            ["what", "ms", "quartiles"],
            [
                [r["name"], _ms(r["seconds"]), f"{_ms(r['low'])} to {_ms(r['high'])}"]
                for r in rows
                if r["kind"] == "overlap"
            ],
        ),
        "## Up to 1,000 ranks, gloo as measured",
        "Predicted: milliseconds of exchange a meta-step, and how much of the step is not "
        "exchange, if every further rank had a core and a link like those of the 2 processes.",
        _table(["network", "method", *map(str, RANKS)], list(_measured(rows, links[sizes[0]]))),
        "## Up to 1,000 ranks, assumed links",
        "**Assumed, not measured:** 10 us a message, 25 GB/s and 2.5e12 products/s a rank, as of "
        "NCCL between GPUs, in flat rings. Predicted milliseconds of exchange a meta-step, and the "
        "plan.",
        _table(["parameters", "method", *map(str, RANKS)], list(_assumed())),
    ]
    return "\n\n".join(parts) + "\n"


def _steps(rows: Sequence[dict[str, Any]], links: dict[int, Links]) -> Any:
    steps = [r for r in rows if r["kind"] == "step"]
    for alone, shared in zip(steps[::2], steps[1::2], strict=True):
        method = alone["name"].removesuffix(", alone")
        ranks, found = alone["ranks"], links[alone["ranks"]]
        plan, extra = found.exchange(method, alone["numbers"], ranks)
        waited = cost.all_reduce(1, ranks).messages * found.message
        predicted, measured = float(alone["seconds"]) + extra - waited, float(shared["seconds"])
        yield [
            *(alone["network"], method, alone["ranks"], plan),
            *(_ms(alone["seconds"]), _ms(measured), _ms(predicted), f"{measured / predicted:.2f}"),
        ]


def _measured(rows: Sequence[dict[str, Any]], links: Links) -> Any:
    """Exchange in ms, and the share of a step that is not exchange."""
    least = min(r["ranks"] for r in rows)
    for row in rows:
        if row["kind"] == "step" and row["ranks"] == least and row["name"].endswith(", alone"):
            method, alone = row["name"].removesuffix(", alone"), float(row["seconds"])
            found = [links.exchange(method, row["numbers"], ranks) for ranks in RANKS]
            cells = [f"{_ms(s)} ({alone / (alone + s):.0%})" for _, s in found]
            yield [row["network"], method, *cells]


def _assumed() -> Any:
    """Exchange in ms."""
    for params in ASSUMED_PARAMS:
        for method in ("mean", "Gradient Agreement", "IMTL-G"):
            found = [ASSUMED.exchange(method, params, ranks) for ranks in RANKS]
            name = "mean, GSL" if method == "mean" else method
            yield [f"{params:,}", name, *(f"{_ms(s)} {plan}" for plan, s in found)]


def _ms(seconds: object) -> str:
    found = float(str(seconds)) * 1e3
    return f"{found:,.0f}" if found >= 100 else f"{found:.3g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
