"""The examples in small, and their pages."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.common import interval, table
from tests.helpers.markdown import ROOT

NAMES = sorted(
    path.stem for path in (ROOT / "examples").glob("*.py") if "main(run" in path.read_text()
)
FILES = {name: name.replace("_", "-") for name in NAMES}
PAGES = ROOT / "docs/examples"


def mean(found: dict[str, Any], method: str, measure: str) -> float:
    values = found["scores"][method][measure]
    return sum(values) / len(values)


def reweighted(found: dict[str, Any]) -> None:
    accuracy, auc = "test accuracy, %", "AUC, right against wrong labels"
    assert mean(found, "learned weights", auc) > 0.65
    learned, uniform = (mean(found, f"{x} weights", accuracy) for x in ("learned", "uniform"))
    assert learned > uniform


def looked_ahead(found: dict[str, Any]) -> None:
    """All learn from the same batches, but not the same."""
    losses = [row["test loss, same text"][0] for row in found["scores"].values()]
    assert all(loss < 0.9 * math.log(128) for loss in losses)
    assert len(set(losses)) == len(losses)


def distilled(found: dict[str, Any]) -> None:
    accuracy = "test accuracy, %"
    real = mean(found, "random real images", accuracy)
    assert mean(found, "distilled images", accuracy) > real + 5


def attributed(found: dict[str, Any]) -> None:
    for measure in ("one left out, Pearson", "a tenth left out, Spearman"):
        exact = mean(found, "metagradient", measure)
        assert exact > 0.9
        for control in found["scores"].keys() - {"metagradient"}:
            assert exact > mean(found, control, measure)


def tuned(found: dict[str, Any]) -> None:
    loss = "test loss"
    assert mean(found, "learned per layer", loss) < mean(found, "as the search begins", loss)


def adapted(found: dict[str, Any]) -> None:
    loss, own = "loss of new modules", "trained through the updates"
    assert mean(found, own, loss) < mean(found, f"{own}, no adaptation", loss)
    assert mean(found, own, loss) < 0.8 * math.log(128)


def rated(found: dict[str, Any]) -> None:
    loss = "loss of new modules"
    assert mean(found, "rater's weights", "AUC, good against replaced") > 0.65
    assert mean(found, "rater's weights", loss) < mean(found, "uniform weights", loss)


def semi_supervised(found: dict[str, Any]) -> None:
    """All learn; which is best takes longer than a test."""
    errors = [row["test error, %"][0] for row in found["scores"].values()]
    assert all(error < 50 for error in errors)


def discovered(found: dict[str, Any]) -> None:
    """The network has learned to move the values; TD with tuned lambda is at least as good as 0."""
    whole, last = "error, whole life", "error, last quarter"
    own = "discovered objective"
    assert mean(found, own, last) < mean(found, own, whole)
    assert mean(found, "TD(lambda), tuned", whole) <= mean(found, "TD(0), tuned", whole)


def forward_trained(found: dict[str, Any]) -> None:
    """The order of the variances."""
    names = [
        "backpropagation", "activities perturbed, local losses", "weights perturbed",
    ]  # fmt: skip
    errors = [mean(found, name, "test error, %") for name in names]
    assert errors == sorted(errors)
    assert errors[-1] < 85


def forward_rates(found: dict[str, Any]) -> None:
    loss, short, long, _ = found["scores"]["one JVP per rate"]
    forward, reverse = (found["scores"][x] for x in ("one JVP per rate", "reverse sweep"))
    assert forward[short] == forward[long]
    assert reverse[short][0] < 0.7 * reverse[long][0]
    begin = mean(found, "rates as the search begins", loss)
    assert forward[loss][0] == pytest.approx(reverse[loss][0], rel=1e-3)
    assert forward[loss][0] < begin


def learned_weights(found: dict[str, Any]) -> None:
    """Better than the start, ln 5; who is best takes longer than a test."""
    for row in found["scores"].values():
        assert row["mean loss"][0] < math.log(5)


PROPERTIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "attribute": attributed,
    "discovered_objective": discovered,
    "distill": distilled,
    "forward_gradient": forward_trained,
    "forward_rates": forward_rates,
    "learned_aggregation": learned_weights,
    "learned_rates": tuned,
    "look_ahead": looked_ahead,
    "rate_texts": rated,
    "reweight_labels": reweighted,
    "semi_supervised": semi_supervised,
    "test_time_training": adapted,
}


def run(name: str, *arguments: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    module = importlib.import_module(f"examples.{name}")
    if "mnist" in vars(module) and not Path(os.environ.get("FASTMETA_DATA", ""), "mnist").is_dir():
        pytest.skip("FASTMETA_DATA does not name a folder with mnist/")
    found: dict[str, Any] = module.main(
        module.run, module.draw, module.COMPARE, ["--quick", *arguments]
    )
    return found


@pytest.mark.parametrize("name", NAMES)
def test_in_small(name: str, tmp_path: Path) -> None:
    found = run(name, "--seed", "1", "--out", str(tmp_path))
    PROPERTIES[name](found)
    assert json.loads((tmp_path / f"{FILES[name]}.json").read_text()) == found
    assert (tmp_path / f"{FILES[name]}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_seed_repeats() -> None:
    first, again, other = (run("attribute", "--seed", seed)["scores"] for seed in "330")
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_code_and_results(name: str) -> None:
    page = (PAGES / f"{FILES[name]}.md").read_text()
    found = json.loads((PAGES / f"{FILES[name]}.json").read_text())
    assert table(found) in page
    assert found["command"] in page
    assert f'--8<-- "examples/{name}.py"' in page
    assert f"]({FILES[name]}.png)" in page


@pytest.mark.parametrize("name", NAMES)
def test_the_overview_has_the_results(name: str) -> None:
    found = json.loads((PAGES / f"{FILES[name]}.json").read_text())
    rows = (PAGES / "index.md").read_text().splitlines()
    (row,) = [row for row in rows if f"({FILES[name]}.md)" in row]
    for method in found["compare"]:
        assert any(interval(v) in row for v in found["scores"][method].values()), method


def test_intervals() -> None:
    # 4.303 is Student's quantile for two degrees of freedom.
    assert interval([1.0, 2.0, 3.0]) == f"2.0 ± {4.303 / math.sqrt(3):.1f}"
    assert interval([0.5]) == "0.5"
    found = {
        "scores": {"a": {"x": [1.0, 2.0], "y": [1.0, 1.0]}, "b": {"x": [0.0, 1.0]}},
        "compare": ["a", "b"],
    }
    assert table(found).splitlines()[-1] == "| a minus b | 1.0000 ± 0.0000 |  |"
