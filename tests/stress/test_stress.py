"""Short forms of the commands in this folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def run(command: str, *arguments: str) -> str:
    seed = str(torch.randint(1 << 30, ()).item())
    process = subprocess.run(
        [sys.executable, "-m", f"tests.stress.{command}", *arguments, "--seed", seed],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_three_kills() -> None:
    assert "3 kills" in run("kills", "--kills", "3")


def test_ops_with_random_and_invalid_arguments() -> None:
    assert "of 32 ops" in run("fuzz_ops", "--examples", "10")


def test_corrupt_and_malicious_data_files() -> None:
    assert "of 13 kinds" in run("fuzz_loaders", "--examples", "5")


def test_memory_stays_constant() -> None:
    assert "200 meta-steps" in run("soak", "--steps", "200")


def test_runs_resumed_in_another_process() -> None:
    cases = ("gsl-R2", "cml", "maml++")
    assert "3 methods" in run("resumes", "--cases", *cases, "--datasets", "digits")
