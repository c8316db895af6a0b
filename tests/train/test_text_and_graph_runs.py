"""Runs on synthetic texts and graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastmeta.cli import main
from fastmeta.data import EpisodeSampler
from fastmeta.models import GCN, TextEncoder
from fastmeta.train import ConfigError, configure, evaluate_run, resume, train
from fastmeta.train.builders import build_module
from fastmeta.train.checkpoint import checkpoints, load_checkpoint
from fastmeta.train.sources import task_source
from tests.helpers.problems import tasks
from tests.helpers.synthetic_files import write_banking77, write_planetoid

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "data_root": "data",
    "lr_schedule": "none",  # a schedule depends on the total number of steps
    "meta_batch": 2,
    "steps": 4,
    "val_every": 2,
    "val_tasks": 5,
    "test_tasks": 10,
    "checkpoint_every": 3,
    "untrained_inner_steps": 2,
    "plots": False,
    "out": "run",
}
RUNS: dict[str, dict[str, Any]] = {
    "banking77": {**SMALL, "dataset": "banking77", "hidden": [6], "data_options": {"length": 8}},
    "cora": {**SMALL, "dataset": "cora", "hidden": [4, 3], "eval_queries": 5, "inner_steps": 2},
}


@pytest.fixture(autouse=True)
def data(working_directory: Path) -> None:
    write_banking77(Path("data"))
    write_planetoid(Path("data"), "cora", classes=7)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("method", ["gsl", "maml"])
def test_a_run_is_reproducible_and_resumable(name: str, method: str) -> None:
    options = {**RUNS[name], "method": method}
    whole = train(configure(options))
    assert whole is not None
    assert whole["metric"] == "accuracy"
    assert evaluate_run("run", {})["test"] == whole["test"]
    train(configure({**options, "out": "again", "steps": 2}))
    continued = resume("again", {"steps": 4})
    assert continued is not None
    assert [continued[k] for k in ("val", "test")] == [whole[k] for k in ("val", "test")]


def test_the_network_matches_the_data() -> None:
    text = configure(RUNS["banking77"], {"data_options": {"vocabulary": 50}})
    module = build_module(text, task_source(text, "train", CPU), CPU)
    assert isinstance(module, TextEncoder)
    assert module.embedding.weight.shape == (50, 6)
    assert module.head.out_features == 5
    node = configure(RUNS["cora"])
    source = task_source(node, "train", CPU)
    assert isinstance(source, EpisodeSampler)
    module = build_module(node, source, CPU)
    assert isinstance(module, GCN)
    assert [layer.out_features for layer in (*module.convolutions, module.head)] == [4, 3, 2]


@pytest.mark.parametrize("name", RUNS)
def test_the_plot(name: str) -> None:
    train(configure({**RUNS[name], "plots": True}))
    assert Path("run/curves.png").stat().st_size > 10_000


def test_checkpoints_have_no_graph() -> None:
    train(configure(RUNS["cora"]))
    state = load_checkpoint(checkpoints(Path("run"))[-1])["learner"]["module"]
    assert sum(value.numel() for value in state.values()) == 4 * 13 + 3 * 5 + 2 * 4


@pytest.mark.parametrize(("name", "needed"), [("banking77", "TextDataset"), ("cora", "NodeData")])
def test_other_tasks_are_refused(name: str, needed: str) -> None:
    with pytest.raises(ConfigError, match=f"needs tasks drawn from a {needed}"):
        build_module(configure(RUNS[name]), {0: tasks()}, CPU)  # type: ignore[arg-type]


def test_info_finds_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--data-root", "data"]) == 0
    assert "digits, image-regression, sine, banking77, citeseer, cora\n" in capsys.readouterr().out
