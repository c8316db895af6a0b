"""``fastmeta train`` under torchrun equals a single process, also after a rank was killed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmeta.train import ConfigError, configure, train
from fastmeta.train.checkpoint import load_checkpoint

OPTIONS: dict[str, Any] = {
    **{"dataset": "sine", "method": "gradient-agreement", "hidden": [16], "meta_batch": 5},
    **{"steps": 40, "log_every": 10, "val_every": 20, "val_tasks": 12, "test_tasks": 12},
    **{"checkpoint_every": 15, "plots": False, "threads": 1, "seed": 3},
}


def torchrun(*arguments: str, restarts: int = 0) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "--monitor-interval=0.1", "--standalone", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result_of(folder: Path) -> tuple[list[list[float]], dict[str, Any], dict[str, Any]]:
    """The curves without times and speeds, the results, the final state."""
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    curves = [[float(r[k] or 0) for k in ("step", "mse", "ci95", "loss", "lr")] for r in rows]
    results = json.loads((folder / "results.json").read_text())
    return curves, results, load_checkpoint(folder / "step-00000040.pt")["learner"]["module"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an uninterrupted run on two ranks, and its output."""
    folder = tmp_path_factory.mktemp("two")
    flags = [
        *("--dataset=sine", "--method=gradient-agreement", "--hidden=16", "--meta-batch=5"),
        *("--steps=40", "--log-every=10", "--val-every=20", "--val-tasks=12", "--test-tasks=12"),
        *("--checkpoint-every=15", "--no-plots", "--threads=1", "--seed=3"),
    ]
    return folder, torchrun("-m", "fastmeta", "train", *flags, f"--out={folder}", "--continue")


def test_two_ranks_train_as_one_process(two: tuple[Path, str], tmp_path: Path) -> None:
    folder, out = two
    train(configure({**OPTIONS, "out": str(tmp_path)}))
    assert out.count("mse on held-out tasks") == 1  # one rank reports
    (curves, results, state), (others, other, other_state) = map(result_of, (tmp_path, folder))
    torch.testing.assert_close(torch.tensor(others), torch.tensor(curves), rtol=1e-4, atol=1e-5)
    assert other["test"]["mean"] == pytest.approx(results["test"]["mean"], rel=1e-4)
    for name, tensor in state.items():
        torch.testing.assert_close(other_state[name], tensor, rtol=1e-5, atol=1e-5)


def test_a_killed_rank_is_restarted_and_changes_nothing(
    two: tuple[Path, str], tmp_path: Path
) -> None:
    script = Path(__file__).with_name("killed_rank.py")
    config = tmp_path / "killed.json"
    config.write_text(json.dumps({**OPTIONS, "out": str(tmp_path)}))
    torchrun(str(script), str(config), "23", restarts=1)
    (curves, results, state), (others, other, other_state) = map(result_of, (two[0], tmp_path))
    assert curves == others
    assert results["test"] == other["test"]
    assert all(torch.equal(other_state[name], tensor) for name, tensor in state.items())


def test_ranks_need_a_common_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="share the folder of a run: set it with out"):
        train(configure(OPTIONS))
