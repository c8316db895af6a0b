"""The table of registers and spills against which CI checks a build."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci/registers.py"


def report(
    kernel: str = "4pack",
    architecture: int = 80,
    registers: int = 40,
    spill: int = 0,
    smem: int = 8,
) -> str:
    """The report of ptxas on one kernel, indented as pip prints it."""
    symbol = f"_ZN8fastmeta4cuda{kernel}IfLi2EEEvv"
    return f"""
  ptxas info    : Compiling entry function '{symbol}' for 'sm_{architecture}'
  ptxas info    : Function properties for {symbol}
      0 bytes stack frame, {spill} bytes spill stores, {2 * spill} bytes spill loads
  ptxas info    : Used {registers} registers, used 1 barriers, {smem} bytes smem, 552 bytes cmem[0]
"""


def call(folder: Path, log: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "log").write_text(log)
    arguments = [
        SCRIPT,
        folder / "log",
        "--table",
        folder / "table.md",
        "--release",
        "13.0",
        *options,
    ]
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = report() + report(architecture=90, registers=255, spill=12) + report("4gram", smem=0)
    assert call(tmp_path, log, "--write").returncode == 0
    text = (tmp_path / "table.md").read_text()
    assert "| `pack<float, 2>` | 8 | 40 | 255 (12 + 24) |" in text
    assert "| `gram<float, 2>` | 0 | 40 |  |" in text
    return tmp_path


@pytest.mark.parametrize(
    "log",
    [
        report() + report(architecture=90, registers=255, spill=12) + report("4gram", smem=0),
        report(registers=48) + report("4gram", registers=8, smem=0),  # within the margin; fewer
        report(architecture=120, registers=99) + report("4gram", smem=0),  # not in the table
    ],
)
def test_kernels_within_the_table_pass(folder: Path, log: str) -> None:
    found = call(folder, log)
    assert (found.returncode, found.stderr) == (0, "")
    assert "2 kernels" in found.stdout


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (report(registers=49), "pack<float, 2>, sm_80: needs over 8 more registers: 49"),
        (report(spill=4), "pack<float, 2>, sm_80: spills more: 40 (4 + 8), shared 8"),
        (report(architecture=90, registers=255, spill=16), "sm_90: spills more: 255 (16 + 32)"),
        (report(smem=16), "pack<float, 2>, sm_80: needs more shared memory"),
        (report() + report("3new"), "new<float, 2>: not in the table"),
        (report(), "gram<float, 2>: in the table, but not in the build"),
    ],
)
def test_kernels_above_the_table_are_named(folder: Path, log: str, said: str) -> None:
    if "but not in" not in said:
        log += report("4gram", smem=0)
    before = (folder / "table.md").read_text()
    found = call(folder, log)
    assert found.returncode == 1
    (line,) = found.stdout.splitlines()
    assert said in line
    assert "--write" in found.stderr
    assert (folder / "table.md").read_text() == before


def test_another_compiler_is_not_compared(folder: Path) -> None:
    found = call(folder, report(registers=200), "--release", "12.8")
    assert found.returncode == 0
    assert "not compared" in found.stdout


def test_a_log_without_a_report_is_refused(folder: Path) -> None:
    found = call(folder, "ninja: no work to do.")
    assert found.returncode == 1
    assert "NVCC_APPEND_FLAGS" in found.stderr
