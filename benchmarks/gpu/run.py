"""Everything that needs a GPU, in one command that finishes within eight minutes.

    python -m benchmarks.gpu

Builds the kernels in place for this GPU, runs the tests of ops and kernels on it, part of them
again under compute-sanitizer, and the tables of ``benchmarks.gpu.tables``; then writes
``benchmarks/results/gpu-NAME-DATE.json`` and the page ``.md`` beside it. Run it from the repository
root of a bare machine: it needs torch with CUDA, nvcc, the build requirements, pytest and
Hypothesis, but no installed fastmeta, and downloads nothing. The exit code is the number of failed
stages.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.page import page

ROOT = Path(__file__).resolve().parents[2]
TAIL = 4000  # characters kept of the output of a stage
TESTS = ("tests/cuda", "tests/ops")
# Whole tables of dtypes and sizes run without it; it slows a kernel down a hundredfold.
SANITIZED = (
    "tests/cuda/test_ops_on_gpu.py",
    "-k",
    "float32 and (equals_the_reference or many_sizes)",
)
TOOLS = ("memcheck", "racecheck", "initcheck")


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--seconds", type=float, default=1.5, help="time per group of contenders")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("expected a CUDA GPU, but torch sees no CUDA device.")
    name = torch.cuda.get_device_name()
    date = time.strftime("%Y-%m-%d")
    stem = f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{date}"
    found: dict[str, Any] = {"device": name, "date": date, **_versions(), "stages": {}}
    args.out.mkdir(parents=True, exist_ok=True)
    tables = args.out / f"{stem}-tables.json"
    passed = [
        _stage(found, "build", [*_pip(), "--editable", "."], 200),
        _stage(found, "tests", [*_pytest(), *TESTS], 150),
        *_sanitized(found),
        _stage(
            found,
            "tables",
            _python("-m", "benchmarks.gpu.tables", f"--seconds={args.seconds}", f"--out={tables}"),
            150,
        ),
    ]
    if tables.exists():
        found["tables"] = json.loads(tables.read_text())
        tables.unlink()
    (args.out / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / f"{stem}.md").write_text(page(found))
    print(page(found))
    return passed.count(False)


def _versions() -> dict[str, str]:
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=False).stdout
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "nvcc": (re.findall(r"release [^,]+, (\S+)", nvcc) or ["?"])[0],
        "driver": driver.strip().split("\n")[0],
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
    }


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _pip() -> list[str]:
    return _python("-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps")


def _pytest() -> list[str]:
    return _python("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")


def _stage(found: dict[str, Any], name: str, command: Sequence[str], limit: float) -> bool:
    """Runs a stage, records its result, and returns whether it passed."""
    return _wait(found, name, _start(command), time.monotonic(), limit)


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    major, minor = torch.cuda.get_device_capability()
    environment = {
        **os.environ,
        "FASTMETA_CUDA": "on",
        "FASTMETA_CUDA_ARCHITECTURES": f"{major}{minor}",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _wait(
    found: dict[str, Any], name: str, process: subprocess.Popen[str], began: float, limit: float
) -> bool:
    try:
        output, _ = process.communicate(timeout=max(1.0, began + limit - time.monotonic()))
        result: object = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        output, result = process.communicate()[0], f"stopped after {limit:.0f} s"
    seconds = time.monotonic() - began
    print(f"{name}: {result}, {seconds:.0f} s\n{output[-TAIL:]}", flush=True)
    found["stages"][name] = {"result": result, "seconds": seconds, "output": output[-TAIL:]}
    return result == 0


def _sanitized(found: dict[str, Any]) -> list[bool]:
    """Runs the tools in parallel; without compute-sanitizer, records that it is missing."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        found["stages"]["compute-sanitizer"] = {"result": "not installed", "seconds": 0}
        return []
    # Skip the kernels of torch.
    ours = ("--kernel-name", "kns=fastmeta", "--error-exitcode", "9", "--target-processes", "all")
    began = time.monotonic()
    running = {
        name: _start([tool, "--tool", name, *ours, *_pytest(), *SANITIZED]) for name in TOOLS
    }
    return [_wait(found, name, process, began, 120) for name, process in running.items()]
