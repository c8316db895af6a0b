"""The machine code of the CUDA kernels, where a disassembler is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections import defaultdict
from pathlib import Path

import pytest

import fastmeta
from fastmeta import _C

# From the wheels nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm, or of a whole toolkit.
WHEELS = sorted(Path(sysconfig.get_path("platlib")).glob("nvidia/cu*/bin"))
PATH = os.pathsep.join([os.environ.get("PATH", ""), *map(str, WHEELS)])
TOOLS = [shutil.which(tool, path=PATH) for tool in ("cuobjdump", "nvdisasm")]

pytestmark = [
    pytest.mark.skipif(not fastmeta.build_info().cuda, reason="a build without CUDA kernels"),
    pytest.mark.skipif(None in TOOLS, reason="needs cuobjdump and nvdisasm"),
]

# Kernels over rows and parameters; those of norm where a thread has several channels.
WIDE = re.compile(
    r"11pack_kernel|(row_similarity|mean_similarity|gram|combine)_kernel|"
    r"(inner_step|hvp_perturb|hvp_difference)_kernel|"
    r"norm_(moments|forward|backward|backward_sums|second|second_sums)_kernelI(fLi4|dLi2)"
)


def loads(architecture: str) -> dict[str, list[str]]:
    """Loads from global memory, by mangled kernel name."""
    listing = subprocess.run(
        [str(TOOLS[0]), "-sass", "-arch", f"sm_{architecture}", _C.__file__],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PATH": PATH},
    ).stdout
    found: dict[str, list[str]] = defaultdict(list)
    kernel = ""
    for function, load in re.findall(r"Function : (\S+)|\b(LDG\S*)", listing):
        kernel = function or kernel
        found[kernel] += [load] if load else []
    return found


@pytest.mark.parametrize("which", [0, -1], ids=["oldest", "newest"])
def test_loads_of_16_bytes(which: int) -> None:
    kernels = loads(fastmeta.build_info().cuda_architectures[which])
    wide = {name: found for name, found in kernels.items() if WIDE.search(name)}
    assert len(wide) == 55
    for name, found in wide.items():
        assert any(".128" in load for load in found), name
