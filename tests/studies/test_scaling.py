"""The page of the communication model recovers the links that its numbers were made from."""

from __future__ import annotations

import pytest

from benchmarks.scaling.page import COLLECTIVES, PLANS, Links, fit, page
from fastmeta.distributed import _cost as cost

LINKS = Links(message=3e-4, number=5e-9, product=6e-11)
ALONE = 0.02


def measured(ranks: int, params: int) -> list[dict[str, object]]:
    """Measurements of ``scaling.py`` if the model were exact."""

    def row(kind: str, name: str, numbers: int, seconds: float) -> dict[str, object]:
        what = {"kind": kind, "network": "net", "name": name, "ranks": ranks, "numbers": numbers}
        return {**what, "seconds": f"{seconds:.9g}", "low": "0", "high": "1"}

    rows = []
    for numbers in (2, 2**10, 2**20):
        for name, of in COLLECTIVES.items():
            each = of(numbers, ranks)
            rows.append(row("link", name, numbers, each.time(3e-4, 5e-9, 6e-11)))
        rows.append(row("link", "gram", numbers, 16 * 17 / 2 * numbers / 16 * 6e-11))
    waited = cost.all_reduce(1, ranks).messages * LINKS.message
    for method in PLANS:
        _, extra = LINKS.exchange(method, params, ranks)
        rows.append(row("step", f"{method}, alone", params, ALONE))
        rows.append(row("step", f"{method}, sharded", params, ALONE + extra - waited))
    return rows


@pytest.mark.parametrize("ranks", [2, 4])
def test_links_and_step_times_are_recovered(ranks: int) -> None:
    rows = measured(ranks, 300_000)
    found = fit(rows, ranks)
    assert found.message == pytest.approx(LINKS.message, rel=1e-6)
    assert found.number == pytest.approx(LINKS.number, rel=1e-6)
    assert found.product == pytest.approx(LINKS.product, rel=1e-6)
    lines = [line for line in page("facts.", rows).splitlines() if line.startswith("| net")]
    steps = [line for line in lines if line.endswith("1.00 |")]
    assert len(steps) == len(PLANS)


def test_a_single_rank_exchanges_nothing() -> None:
    for method in PLANS:
        assert LINKS.exchange(method, 1000, 1)[1] == pytest.approx(0, abs=1e-12)
