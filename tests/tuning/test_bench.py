"""Benchmarks of methods, networks and engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastmeta.cli import main
from fastmeta.train import ConfigError
from fastmeta.train.builders import build_learner, build_module
from fastmeta.train.config import configure
from fastmeta.train.sources import task_source
from fastmeta.tuning import bench
from fastmeta.tuning.bench import PLAIN, _plain_step
from fastmeta.tuning.floor import products
from fastmeta.tuning.memory import peak_bytes

SMALL = {"dataset": "sine", "meta_batch": 2, "shots": 3, "queries": 3, "hidden": [4], "threads": 1}


def test_rows_and_reasons() -> None:
    found = bench(SMALL, ["maml", "fomaml"], engines=["loop", "batched", "mlp"], rounds=1)
    assert [(row.method, row.engine) for row in found.rows[:2]] == [
        ("maml", PLAIN),
        ("fomaml", PLAIN),
    ]
    assert [row.speedup for row in found.rows[:2]] == [1, 1]
    assert len(found.rows) == 8
    for row in found.rows:
        assert row.tasks_per_second == pytest.approx(2 / row.seconds)
        assert row.peak_bytes > 0
        assert row.floor > 0
    partly = bench(SMALL, ["imaml"], engines=["loop", "mlp"], rounds=1)
    assert [row.engine for row in partly.rows] == [PLAIN, "loop"]
    assert "engine 'mlp' cannot run this" in str(partly)
    with pytest.raises(ConfigError, match=r"nothing to time: .*needs backbone mlp"):
        bench(SMALL, ["maml"], ["conv4"], rounds=1)


@pytest.mark.parametrize(("method", "second"), [("maml", True), ("fomaml", False)])
def test_plain_autograd_takes_the_same_step(method: str, second: bool) -> None:
    config = configure(SMALL, {"method": method})
    cpu = torch.device("cpu")
    source = task_source(config, "train", cpu)
    learner = build_learner(config, build_module(config, source, cpu))
    other = build_module(config, source, cpu)
    learner.backward(source[0])
    _plain_step(other, learner, config, source[0], second)()
    for ours, plain in zip(learner.module.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_the_command(working_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--dataset sine --meta-batch 2 --hidden 4 --method fomaml --rounds 1 --json found.json"
    assert main(["bench", *flags.split()]) == 0
    printed = capsys.readouterr().out
    assert "plain autograd" in printed
    found = json.loads(Path("found.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["fomaml", "fomaml"]
    assert found["meta_batch"] == 2
    assert main(["bench", "--rounds", "0"]) == 2


def test_peak_memory() -> None:
    def run() -> None:
        first = torch.ones(1000, 1000)
        second = first + 1
        del first
        second.sum()

    assert 8_000_000 <= peak_bytes(run, torch.device("cpu")) < 8_100_000


def test_products() -> None:
    x = torch.ones(100, 64, requires_grad=True)
    weight = torch.ones(32, 64, requires_grad=True)
    # The forward pass and the gradients of both factors.
    assert products(lambda: (x @ weight.t()).sum().backward()) == 3 * 100 * 64 * 32 / 512**3
