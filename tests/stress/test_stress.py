"""Short forms of the commands in this folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch


def run(command: str, *arguments: str) -> str:
    script = Path(__file__).with_name(command)
    seed = str(torch.randint(1 << 30, ()).item())
    process = subprocess.run(
        [sys.executable, str(script), *arguments, "--seed", seed],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_three_kills() -> None:
    assert "3 kills" in run("kills.py", "--kills", "3")


def test_ops_with_random_and_wrong_arguments() -> None:
    assert "of 21 ops" in run("fuzz_ops.py", "--examples", "10")


def test_damaged_and_harmful_data_files() -> None:
    assert "of 13 kinds" in run("fuzz_loaders.py", "--examples", "5")


def test_memory_stays_flat() -> None:
    assert "200 meta-steps" in run("soak.py", "--steps", "200")


def test_runs_resumed_in_another_process() -> None:
    cases = ("gsl-R2", "cml", "maml++")
    assert "3 methods" in run("resumes.py", "--cases", *cases, "--datasets", "digits")
