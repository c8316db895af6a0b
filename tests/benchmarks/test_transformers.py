"""The benchmark of transformers on tiny cases: equal meta-gradients, rows and resumption."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.transformers import run
from benchmarks.transformers.cases import CASES, GPU_CASES, TRAINING_RUNS, Case, batch
from benchmarks.transformers.contenders import CONTENDERS
from benchmarks.transformers.networks import build
from benchmarks.transformers.rows import Row, page, read, text, write

GPT = Case("gpt", "gpt", sequences=2, tokens=8, width=16, layers=2, heads=2, steps=2)
TINY = {
    "gpt": GPT,
    "lora": replace(GPT, network="lora"),
    "vit": replace(GPT, network="vit", tokens=4, layers=1, tasks=2),
    "training run": replace(GPT, steps=5, optimizer="adamw"),
    "attention": replace(GPT, network="attention"),
    "attention, full": replace(GPT, network="attention", causal=False, whole=True),
}
EXACT = [name for name, contender in CONTENDERS.items() if contender.exact]


def gradient(name: str, case: Case) -> torch.Tensor:
    torch.manual_seed(0)
    found = CONTENDERS[name].make(case, build(case), batch(case))()
    return torch.cat([torch.as_tensor(g).detach().flatten() for g in found])


@pytest.mark.parametrize("name", [name for name in EXACT if name not in ("plain", "run-plain")])
@pytest.mark.parametrize("network", TINY)
def test_meta_gradients_are_equal(network: str, name: str) -> None:
    case, contender = TINY[network], CONTENDERS[name]
    if not contender.runs(case):
        return
    if contender.rival:
        pytest.importorskip(
            next(n for n in ("jax", "torchopt", "learn2learn") if n in contender.module)
        )
    try:
        found = gradient(name, case)
    except ValueError as error:
        if not name.startswith("checkpoint"):
            raise
        pytest.skip(str(error))
    expected = gradient("plain" if case.optimizer == "sgd" else "run-plain", case)
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_lora_adapts_its_factors_only() -> None:
    case = TINY["lora"]
    assert len(gradient("plain", case)) == case.layers * 8 * (16 + 48 + 16 + 16)
    assert gradient("fomaml", case).shape == gradient("exact", case).shape


def test_floors() -> None:
    # A training step takes 3 (forward pass: 1), an inner step 9; without weight gradients 2 and 4.
    floors = {case.name: case.floor for case in GPU_CASES}
    assert floors["gpt-4x128-k8"] == (9 * 8 + 3) / 3
    assert floors["lora-1024"] == (4 + 2) / 2
    assert floors["vit"] == pytest.approx((9 * 5 + 3 * 75) / (3 * 75))
    assert floors["attention-8192"] == 3


def test_predicted_work() -> None:
    """A training step per inner step that is run, and three in the reverse sweep."""
    work = {
        name: CONTENDERS[name].predicted(case)
        for case in TRAINING_RUNS
        if case.name == "adamw-k32"
        for name in ("run-all", "run-sqrt", "run-disk", "run-plain")
    }
    assert work == {
        "run-all": 32 + 3 * 32 + 1,
        "run-sqrt": 61 + 3 * 32 + 1,
        "run-disk": 32 + 3 * 32 + 1,
        "run-plain": None,
    }
    case = TRAINING_RUNS[0]
    row = Row(case.name, "run-all", 33.0, 30.0, 40.0, 3, 50.0, 33 / 25, 2.0)
    assert "| 1.00 (33) |" in page([case], [row])


def test_rows_are_read_as_written_and_shown(tmp_path: Path) -> None:
    case = CASES[0]
    rows = [
        Row(case.name, "training-step", 20.0, 19.0, 21.0, 3, 50.0, 0.25, 1.0, setting="today"),
        Row(case.name, "plain", 90.0, 80.0, 95.0, 3, 400.0, 1.125, 8.0, 0.0, "plain"),
        Row(case.name, "learn2learn", note="out of memory (limit 5.0 GB)"),
        Row(case.name, "checkpoint", note="refused: no second order"),
    ]
    write(tmp_path / "rows.csv", rows)
    again = read(tmp_path / "rows.csv")
    assert [row.note for row in again] == [row.note for row in rows]
    assert again[1].times_floor == 1.125
    assert math.isnan(again[2].ms)
    assert "errors against plain autograd" in text(CASES, again)
    found = page(CASES, again)
    assert "| plain autograd | 1.12 (0.09) |" in found
    assert "| plain autograd | 8.00 (400) |" in found
    assert "| learn2learn MAML | out of memory |" in found


@pytest.mark.parametrize(
    ("reason", "note"),
    [
        (
            "ValueError: checkpoint=True saves no memory, but x",
            "refused: checkpoint=True saves no memory",
        ),
        ("ModuleNotFoundError: No module named 'jax'", "not installed: No module named 'jax'"),
        ("out of memory (limit 5.0 GB)", "out of memory (limit 5.0 GB)"),
        ("killed by signal 9", "failed: killed by signal 9"),
    ],
)
def test_reasons(reason: str, note: str) -> None:
    assert run._note(reason) == note


def test_finished_rows_are_not_measured_again(tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "found"
    arguments = f"run --out {out} --cases attention-full --contenders training-step --rounds 1"
    monkeypatch.setattr("sys.argv", [*arguments.split(), "--threads", "1"])
    assert run.main() == 0  # in a process of its own
    (row,) = read(out.with_suffix(".csv"))
    assert min(row.ms, row.mb) > 0
    assert row.times_memory == 1
    assert row.times_floor == pytest.approx(1 / 2)
    before = out.with_suffix(".csv").read_text()
    monkeypatch.setattr(run, "measure", None)
    assert run.main() == 0
    assert out.with_suffix(".csv").read_text() == before
    assert "training step" in out.with_suffix(".txt").read_text()
    assert "training step" in out.with_suffix(".md").read_text()
