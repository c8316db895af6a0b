"""The GPU benchmark without a GPU: its tables on the CPU, its page, its error."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import tables
from benchmarks.gpu.page import page

ROOT = Path(__file__).parents[2]


def test_tables_and_their_page() -> None:
    bench = tables.Bench("cpu", 0.0, small=True)
    found = {
        "ceilings": tables.ceilings(bench),
        "similarity_weight_combine": tables.similarity_weight_combine(bench),
        "pack": tables.pack(bench),
    }
    assert all(row["ms"] > 0 for rows in found.values() for row in rows)
    for row in found["pack"]:
        moved = 2 * 4 * 2000 * 4  # bytes, of four rows of 2,000 float32
        assert math.isclose(row["of_copy"] * row["ms"] / 1e3 * bench.copy, moved)
    facts = dict.fromkeys(
        ("device", "date", "capability", "driver", "torch", "nvcc", "python"), "x"
    )
    stages = {"build": {"result": 0, "seconds": 3.0}, "tests": {"result": 1, "seconds": 2.0}}
    text = page({**facts, "stages": stages, "tables": found})
    assert "| build | passed | 3 |" in text
    assert "| tests | failed: 1 | 2 |" in text
    assert "## Similarity weight combine" in text
    assert text.count("\n| ") >= sum(map(len, found.values())) + 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "torch sees no CUDA device" in done.stderr
