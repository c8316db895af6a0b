"""``fastmeta tune-pattern`` on runs of about a second."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image

from fastmeta.cli import main
from fastmeta.train import configure, evaluate_run, train
from fastmeta.tuning import search
from fastmeta.tuning.timing import medians

pytestmark = pytest.mark.usefixtures("working_directory")

SMALL: dict[str, Any] = {
    "steps": 6,
    "meta_batch": 2,
    "val_every": 6,
    "val_tasks": 10,
    "test_tasks": 20,
    "eval_inner_steps": 2,
    "untrained_inner_steps": 0,
    "plots": False,
    "out": "run",
}
RUNS: dict[str, dict[str, Any]] = {
    "sine": {**SMALL, "dataset": "sine", "hidden": [8], "method": "meta-sgd"},
    "digits": {**SMALL, "dataset": "digits", "hidden": [8, 8], "backbone": "mlp"},
}


@pytest.mark.parametrize("name", RUNS)
def test_outputs(name: str, capsys: pytest.CaptureFixture) -> None:
    layers = {"sine": 2, "digits": 3}[name]
    train(configure(RUNS[name]))
    before = sorted(path.name for path in Path("run").iterdir())
    capsys.readouterr()
    with mock.patch.object(search, "medians", partial(medians, rounds=1)):
        assert main(["tune-pattern", "run", "--tasks", "10", "--allowed-loss", "2"]) == 0
    printed = capsys.readouterr().out

    after = sorted(path.name for path in Path("run").iterdir())
    assert sorted({*after} - {*before}) == ["pareto.png", "patterns.csv", "patterns.json"]
    with Image.open("run/pareto.png") as picture:
        assert min(picture.size) > 300
    content = json.loads(Path("run/patterns.json").read_text())
    with Path("run/patterns.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert content["allowed_loss"] == 2
    assert [s["inner_steps"] for s in content["searches"]] == [2, 1]
    assert len(rows) == 2 * (2**layers - 1)
    for found in content["searches"]:
        mine = [row for row in rows if int(row["inner_steps"]) == found["inner_steps"]]
        assert {row["pattern"] for row in mine if row["front"] == "1"} == set(found["front"])
        assert len(found["layers"]) == layers
        assert found["full"]["pattern"] == "1" * layers
        assert found["full"]["speedup"] == 1
        assert found["full"]["change"]["mean"] == 0
        for role in ("full", "chosen", "best"):
            trial = found[role]
            (row,) = (row for row in mine if row["pattern"] == trial["pattern"])
            assert float(row[content["metric"]]) == trial["val"]["mean"]
            assert float(row["seconds"]) == trial["seconds"]
            assert (trial["val"]["tasks"], trial["test"]["tasks"]) == (10, 20)
            change = trial["test"]["mean"] - found["full"]["test"]["mean"]
            assert trial["change"]["mean"] == pytest.approx(change, abs=1e-12)
            assert trial["pattern"] in printed
    patterns = [s[role]["pattern"] for s in content["searches"] for role in ("chosen", "best")]
    assert ("against full" in printed) == any("0" in pattern for pattern in patterns)

    # The pattern can be evaluated on the run; all layers are the default of the run.
    (first, _) = content["searches"]
    of = "meta-sgd" if name == "sine" else "sgd"
    for role in ("full", "chosen"):
        changes = {
            "adaptation": "lambda",
            "adaptation_options": {"pattern": first[role]["pattern"], "of": of},
        }
        assert evaluate_run("run", changes)["test"]["mean"] == first[role]["test"]["mean"]
    assert evaluate_run("run", {})["test"]["mean"] == first["full"]["test"]["mean"]


def test_one_inner_step_is_searched_once() -> None:
    train(configure(RUNS["sine"]))
    assert main(["tune-pattern", "run", "--tasks", "10", "--eval-inner-steps", "1"]) == 0
    assert len(json.loads(Path("run/patterns.json").read_text())["searches"]) == 1


def test_a_pattern_is_trained_and_saved(capsys: pytest.CaptureFixture) -> None:
    """Named patterns in a configuration, and bits that look like a number."""
    flags = "--dataset digits --hidden 4 --steps 3 --meta-batch 2 --val-tasks 4 --test-tasks 4"
    flags += " --untrained-inner-steps 0 --no-plots --out run --method gsl --aggregation agreement"
    for number, pattern in (("11111", "11111"), ("00011", "00011"), ("head", "head")):
        run = f"{flags.replace('--out run', f'--out {number}')} --adaptation lambda"
        assert main([*f"train {run}".split(), "--adaptation-option", f"pattern={pattern}"]) == 0
        assert main(["evaluate", number]) == 0
    for method in ("anil", "boil"):
        assert main(f"train {flags} --method {method} --out {method}".split()) == 0
    capsys.readouterr()
    wrong = ["--out", "wrong", "--adaptation", "lambda", "--adaptation-option", "pattern=0011"]
    assert main([*f"train {flags}".split(), *wrong]) == 2
    errors = capsys.readouterr().err
    assert "pattern '0011' has 4 bits, but the network has 5 layers: features.0.0" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("tune-pattern none", "no such checkpoint"),
        ("tune-pattern run --tasks 1", "at least 2 tasks"),
        ("tune-pattern run --allowed-loss -1", "not negative; got 200, 2 and -1.0"),
        ("tune-pattern run --eval-inner-steps 0", "1 inner step"),
        ("evaluate run --adaptation lambda --adaptation-option pattern=1", "1 bits"),
    ],
)
def test_errors_take_one_line(arguments: str, part: str, capsys: pytest.CaptureFixture) -> None:
    train(configure({**RUNS["sine"], "method": "fomaml"}))
    capsys.readouterr()
    assert main(arguments.split()) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("fastmeta: ")
    assert part in errors
    assert errors.count("\n") == 1
