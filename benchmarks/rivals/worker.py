"""Process of a contender: ``python -m benchmarks.rivals.worker CONTENDER CASE GRADIENT THREADS``.

Writes its meta-gradient, if it has one, to GRADIENT, then answers requests, see
``benchmarks._common.serve``.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._common.case_file import load
from benchmarks._common.serve import serve
from benchmarks.rivals.cases import Case, build

SHARED = ("plain_autograd", "learn2learn_maml")


def main() -> None:
    name, case_path, gradient_file, threads = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))

    def make() -> Any:
        folder = "_common" if name in SHARED else "rivals"
        contender = importlib.import_module(f"benchmarks.{folder}.contenders.{name}")
        return contender.make(*load(Path(case_path), Case, build))

    # The fused attention of torch has no second derivative, so all contenders use the plain one.
    with sdpa_kernel(SDPBackend.MATH):
        serve(make, Path(gradient_file))


if __name__ == "__main__":
    main()
