"""Training with non-finite tasks: they are skipped and counted, or named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmeta import TaskBatch
from fastmeta.train import DivergedError, builders, configure, resume, train
from fastmeta.train.checkpoint import checkpoints, load_checkpoint

BAD = {4: [1], 7: [0, 3]}  # tasks by meta-batch, of meta-steps 5 and 8


class NonFiniteTasks:
    """A source of tasks with NaN in some of them."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getitem__(self, index: int) -> TaskBatch:
        batch = self.source[index]
        for task in BAD.get(index, []):
            batch.support_x[task] = torch.nan
        return batch


@pytest.fixture(autouse=True)
def non_finite_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    make: Callable[..., Any] = builders.task_source

    def source(config: Any, split: str, device: Any) -> Any:
        found = make(config, split, device)
        return NonFiniteTasks(found) if split == "train" else found

    monkeypatch.setattr(builders, "task_source", source)


def skipped(folder: str) -> dict[int, int]:
    with (Path(folder) / "log.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    return {int(row["step"]): int(row["skipped"] or 0) for row in rows}


@pytest.mark.parametrize("engine", ["loop", "batched", "mlp"])
def test_non_finite_tasks_are_skipped_and_counted(
    sine: dict[str, Any], engine: str, capsys: pytest.CaptureFixture
) -> None:
    results = train(configure({**sine, "engine": engine}))
    assert results["skipped_tasks"] == 3
    assert json.loads(Path("run/results.json").read_text())["skipped_tasks"] == 3
    assert skipped("run") == {3: 0, 6: 1, 9: 2, 12: 0}
    assert "step 9: tasks skipped since the last record: 2" in capsys.readouterr().err
    content = load_checkpoint(checkpoints(Path("run"))[-1])
    assert all(value.isfinite().all() for value in content["learner"]["module"].values())


def test_counts_are_resumed(sine: dict[str, Any]) -> None:
    whole = train(configure({**sine, "out": "whole"}))
    steps = iter(range(1, 9))
    assert train(configure(sine), stop=lambda: next(steps) == 8) is None
    assert resume("run", {})["skipped_tasks"] == 3
    assert skipped("run") == skipped("whole")
    assert json.loads(Path("run/results.json").read_text())["test"] == whole["test"]


def test_raise_names_step_and_task_and_the_run_can_go_on(sine: dict[str, Any]) -> None:
    whole = train(configure({**sine, "out": "whole"}))
    with pytest.raises(DivergedError, match=r"meta-step 5: .* task 1 .*non_finite='skip'"):
        train(configure({**sine, "non_finite": "raise", "checkpoint_every": 2}))
    assert load_checkpoint(checkpoints(Path("run"))[-1])["step"] == 4
    with pytest.raises(DivergedError, match="meta-step 5"):
        resume("run", {})
    results = resume("run", {"non_finite": "skip"})
    assert (results["test"], results["skipped_tasks"]) == (whole["test"], 3)


def test_keep_lets_them_diverge(sine: dict[str, Any]) -> None:
    with pytest.raises(DivergedError, match="has diverged"):
        train(configure({**sine, "non_finite": "keep"}))
