"""What the command line says about itself: help, methods, components, datasets and defaults."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from fastmeta.adaptation import ADAPTATIONS
from fastmeta.aggregation import AGGREGATIONS
from fastmeta.cli import main, summaries
from fastmeta.cli.arguments import GROUPS, grouped
from fastmeta.cli.catalog import component_options
from fastmeta.data import DATASETS
from fastmeta.learners import METHODS
from fastmeta.metagrad import METAGRADS
from fastmeta.train import TrainConfig, configure, read_config


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def output(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    if arguments.endswith(("--help", "--version")):
        with pytest.raises(SystemExit, match="0"):
            main(arguments.split())
    else:
        assert main(arguments.split()) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert output("--version", capsys).startswith("fastmeta 0.")


def test_help_groups_the_options_and_explains_the_methods(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = output("train --help", capsys)
    for title in GROUPS.values():
        assert f"\n{title}:\n" in printed
    for text in summaries.METHODS.values():
        assert text in printed


def test_every_option_is_in_a_group() -> None:
    groups = dict(grouped(fields(TrainConfig)))
    assert [*groups] == [*GROUPS.values()]
    assert sum(map(len, groups.values())) == len(fields(TrainConfig))
    assert "out" in {item.name for item in groups["run folder, validation and logs"]}


def test_help_of_evaluate_states_no_default_that_is_not_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = output("evaluate --help", capsys)
    assert "validation and test (default: as in the run)" in printed
    assert "600" not in printed


def test_all_names_have_a_summary() -> None:
    assert {*summaries.METHODS} == {*METHODS}
    assert {*summaries.DATASETS} == {*DATASETS}


def test_lists(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "omniglot").mkdir()
    methods = output("methods", capsys)
    for name in (*METHODS, *ADAPTATIONS, *METAGRADS, *AGGREGATIONS):
        assert f"\n  {name} " in methods
    datasets = output(f"datasets --data-root {tmp_path}", capsys)
    lines = [" ".join(line.split()) for line in datasets.splitlines()]
    for start in (
        "digits 8x8 digits",
        "omniglot Omniglot: 1,623",
        "mnist (not found) MNIST",
        "resnet12 Four residual blocks",
    ):
        assert any(line.startswith(start) for line in lines)


@pytest.mark.parametrize(
    ("kind", "registry"),
    [("adaptation", ADAPTATIONS), ("metagrad", METAGRADS), ("aggregation", AGGREGATIONS)],
)
def test_all_options_of_components_are_documented(kind: str, registry) -> None:
    for name in registry:
        options = component_options(kind, name)
        assert options is not None, f"{name}: its factory needs @forwards_options"
        for option in options.values():
            assert option.text, f"{kind} {name}: {option.name} is not in the docstring"
            assert option.default is not inspect.Parameter.empty


def test_all_options_of_data_sets_are_documented() -> None:
    for name in DATASETS:
        options = component_options("dataset", name)
        assert options is not None, f"{name}: its loader needs @forwards_options"
        assert all(option.text for option in options.values() if name != "fc100")


def test_info_of_a_method_has_the_options_of_its_components(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = output("info imaml", capsys)
    assert printed.startswith("method imaml: iMAML")
    assert "inner_steps = 16" in printed
    assert "adaptation proximal: " in printed
    assert "lam  (a number; default: 2.0)\n        coefficient of the proximal term" in printed
    assert "meta-gradient implicit: " in printed
    assert "cg_steps  (an integer; default: 5)" in printed
    assert "aggregation mean: " in printed


def test_info_of_a_name_of_several_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    printed = output("info gsl", capsys)
    for part in ("method gsl: ", "meta-gradient gsl: ", "aggregation gsl: "):
        assert part in printed
    assert "eta  (a number; default: 1.0)" in printed
    assert "tau  (a number; default: 1.0)" in printed


def test_info_of_data_sets_and_backbones(capsys: pytest.CaptureFixture[str]) -> None:
    printed = output("info omniglot", capsys)
    assert "image_size  (an integer; default: 28)" in printed
    assert "steps = 16000" in printed
    assert "root" not in printed.partition("training defaults")[0].split()
    assert "downsample  (one of pool, stride; default: 'pool')" in output("info conv4", capsys)


def test_a_dry_run_prints_a_configuration_that_can_be_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = "--dataset omniglot --method imaml --lr 1e-05 --hidden 32"
    printed = output(f"train --dry-run {options} --metagrad-option damping=2", capsys)
    Path("run.toml").write_text(printed)
    expected = configure(
        {
            "dataset": "omniglot",
            "method": "imaml",
            "lr": 1e-5,
            "hidden": [32],
            "metagrad_options": {"damping": 2},
        }
    )
    assert configure(read_config("run.toml")) == expected
    assert output("train --dry-run --config run.toml", capsys) == printed
    assert not Path("runs").exists()
