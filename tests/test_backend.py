"""Whether freed memory is kept, seen from the page faults of the next tensor."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch, fastmeta
if sys.argv[1] == "keep":
    assert fastmeta.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(8):
    if i == 5:  # the heap has grown to what it needs
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
