"""The runner of a table: every cell once, resumed after an interruption, and the page."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from benchmarks.studies.cells import Results, check_same, fingerprint, run_cell
from benchmarks.studies.costs import measure_costs
from benchmarks.studies.page import write_page
from benchmarks.studies.plan import config_of, read_plan
from fastmeta.train import ConfigError

FILE = """
title = "Sine"
reference = "fomaml"
seeds = [0, 1]
notes = "Of a test."

[base]
dataset = "sine"
steps = 6
meta_batch = 2
hidden = [5]
val_every = 3
val_tasks = 4
test_tasks = 20

[rows.fomaml]
method = "fomaml"

[rows.maml]
method = "maml"
label = "MAML, exact"
published = "98 % (somebody)"
seeds = [0]

[rows.maml-long]
of = "maml"
eval_inner_steps = 20
seeds = [0]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "sine.toml"
    path.write_text(FILE)
    return path


def go_on() -> bool:
    return False


def test_a_data_option_may_be_the_seed(plan: Path) -> None:
    plan.write_text(FILE.replace("steps = 6", 'steps = 6\ndata_options = { noise = "seed" }'))
    table = read_plan(plan, {})
    found = [config_of(cell, plan.parent) for cell in table.cells(["fomaml"])]
    assert [(c.seed, c.data_options) for c in found] == [(0, {"noise": 0}), (1, {"noise": 1})]
    assert len({fingerprint(table, cell) for cell in table.cells(["fomaml"])}) == 2


def test_cells_of_the_first_seed_come_first(plan: Path) -> None:
    cells = [(c.row.name, c.seed) for c in read_plan(plan, {}).cells()]
    assert cells == [("fomaml", 0), ("maml", 0), ("maml-long", 0), ("fomaml", 1)]


def test_an_interrupted_cell_is_completed_exactly(plan: Path, tmp_path: Path) -> None:
    table = read_plan(plan, {})
    cell = table.cells(["maml"])[0]
    whole = run_cell(table, cell, tmp_path / "whole", go_on)
    calls = iter([False, False, True])
    assert run_cell(table, cell, tmp_path / "cut", lambda: next(calls)) is None
    continued = run_cell(table, cell, tmp_path / "cut", go_on)
    assert whole is not None
    assert continued is not None
    clock = ("seconds",)
    assert {k: v for k, v in whole.items() if k not in clock} == {
        k: v for k, v in continued.items() if k not in clock
    }
    # Finished: read, not run again.
    assert run_cell(table, cell, tmp_path / "cut", lambda: pytest.fail("it trains")) == continued


def test_a_row_can_evaluate_the_run_of_another(plan: Path, tmp_path: Path) -> None:
    table = read_plan(plan, {})
    trained, tested = table.cells(["maml", "maml-long"])
    assert run_cell(table, tested, tmp_path, go_on) is None
    first = run_cell(table, trained, tmp_path, go_on)
    second = run_cell(table, tested, tmp_path, go_on)
    assert first is not None
    assert second is not None
    assert (first["inner_steps"], second["inner_steps"]) == (10, 20)
    assert first["mean"] != second["mean"]


def test_a_row_can_continue_the_run_of_another(plan: Path, tmp_path: Path) -> None:
    more = """
[rows.on]
after = "maml"
method = "maml"
steps = 9
seeds = [0]

[rows.weighted]
after = "maml"
method = "maml"
steps = 9
aggregation = "log-loss"
seeds = [0]

[rows.whole]
method = "maml"
steps = 9
seeds = [0]
"""
    plan.write_text(FILE + more)
    table, runs = read_plan(plan, {}), tmp_path / "runs"
    cells = {c.row.name: c for c in table.cells() if c.seed == 0}
    assert run_cell(table, cells["on"], runs, go_on) is None  # maml is not finished
    found = {n: run_cell(table, cells[n], runs, go_on) for n in ("maml", "on", "weighted", "whole")}
    assert found["on"]["steps"] == 9
    assert found["on"]["mean"] == found["whole"]["mean"] != found["weighted"]["mean"]
    assert len({fingerprint(table, cell) for cell in cells.values()}) == len(cells)


def test_a_finished_cell_belongs_to_its_options(plan: Path) -> None:
    table = read_plan(plan, {})
    names = {(c.row.name, c.seed): fingerprint(table, c) for c in table.cells()}
    assert len(set(names.values())) == len(names)
    plan.write_text(FILE.replace("steps = 6", "steps = 7"))
    changed = read_plan(plan, {})
    for cell in changed.cells():
        known = {"config": names[cell.row.name, cell.seed]}
        with pytest.raises(ConfigError, match="Remove its line"):
            check_same(changed, cell, known)
    elsewhere = read_plan(plan, {"data_root": "elsewhere"})
    for cell in changed.cells():
        check_same(elsewhere, cell, {"config": fingerprint(changed, cell)})


def test_results_keep_the_order_of_the_table(tmp_path: Path) -> None:
    results = Results(tmp_path / "x.csv", ["b", "a"])
    for name, seed in (("a", 1), ("b", 0), ("a", 0)):
        results.add({"row": name, "seed": seed, "status": "ok"})
    assert [tuple(k) for k in results.read()] == [("b", 0), ("a", 0), ("a", 1)]


def test_page_and_costs(plan: Path, tmp_path: Path) -> None:
    table = read_plan(plan, {})
    results = Results(tmp_path / "sine.csv", list(table.rows))
    write_page(table, tmp_path)
    assert "| FOMAML | not run |" in (tmp_path / "sine.md").read_text().replace("fomaml", "FOMAML")
    for cell in table.cells(seeds=[0]):
        found = run_cell(table, cell, tmp_path / "runs", go_on)
        assert found is not None
        results.add(found)
    measure_costs(table, tmp_path / "runs", tmp_path / "sine-costs.csv", seconds=0.01)
    with (tmp_path / "sine-costs.csv").open() as file:
        costs = {r["row"]: r for r in csv.DictReader(file)}
    assert set(costs) == {"fomaml", "maml"}
    assert costs["maml"]["cosine"] == "1.000"
    write_page(table, tmp_path)
    page = (tmp_path / "sine.md").read_text()
    assert "98 % (somebody)" in page
    assert re.search(r"\| fomaml \| [^|]*\| 1 \| 1.00x \|", page)
    assert "Of a test." in page
    assert (tmp_path / "sine.png").stat().st_size > 1000


def test_errors_name_the_row(plan: Path) -> None:
    plan.write_text(FILE.replace('of = "maml"', 'of = "mamml"'))
    with pytest.raises(ConfigError, match="mamml"):
        read_plan(plan, {})
    plan.write_text(FILE.replace("eval_inner_steps", "eval_inner_stepz"))
    with pytest.raises(ConfigError, match="row maml-long: unknown option"):
        read_plan(plan, {})
    plan.with_name("methods.toml").write_text('[anil]\nmethod = "anil"\n[boil]\nmethod = "boil"\n')
    plan.write_text(f'use = ["anil"]\n{FILE}[rows.boil]\npublished = "1 %"\n')
    with pytest.raises(ConfigError, match="row boil is one of methods"):
        read_plan(plan, {})


def test_the_tables_of_the_repository_are_valid() -> None:
    folder = Path(__file__).parents[2] / "benchmarks/tables"
    for path in sorted(set(folder.glob("*.toml")) - {folder / "methods.toml"}):
        assert read_plan(path, {}).cells()
