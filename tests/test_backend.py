"""The compiled backend, and whether freed memory is kept."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastmeta

PROGRAM = """
import resource, sys, torch, fastmeta
fastmeta.learners  # whose import leaves free blocks for small allocations, as in any program
if sys.argv[1] == "keep":
    assert fastmeta.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(8):
    if i == 5:  # the heap has reached its final size
        begin = faults()
    torch.zeros(50_000_000)
print(faults() - begin)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_tensors_reuse_memory() -> None:
    faults = {}
    for mode in ("keep", "return"):
        run = [sys.executable, "-c", PROGRAM, mode]
        done = subprocess.run(run, check=True, capture_output=True, text=True)
        faults[mode] = int(done.stdout)
    assert faults["keep"] < 1000 < faults["return"]


def test_the_backend_is_compiled() -> None:
    info = fastmeta.build_info()
    assert info.backend == "compiled"
    assert info.cpu_isa in ("baseline", "avx2", "avx512")
    assert re.match(r"\d+\.\d+", info.built_with_torch)
    assert (info.cuda is None) == (info.cuda_architectures == ())


def test_show_config(capsys: pytest.CaptureFixture) -> None:
    fastmeta.show_config()
    printed = capsys.readouterr().out
    for part in ("backend:      compiled", f"torch:        {torch.__version__}", "CUDA kernels:"):
        assert part in printed


def test_a_missing_compiled_module_is_an_error(tmp_path: Path) -> None:
    # The sources alone, as in a checkout that was never built.
    for path in Path(fastmeta.__file__).parent.rglob("*.py"):
        copy = tmp_path / "fastmeta" / path.relative_to(Path(fastmeta.__file__).parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    # -S: no site-packages hooks, which would put the built package first.
    code = f"import sys; sys.path[:] = {[str(tmp_path), *sys.path]!r}; import fastmeta"
    result = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "compiled kernels could not be loaded" in result.stderr
    assert "pip install -e ." in result.stderr
