"""One contender in a process of its own: ``python worker.py CONTENDER CASE GRADIENT THREADS``.

Writes its meta-gradient to GRADIENT and says ``ready``; then answers every line of its input with
the seconds of one meta-gradient.
"""

from __future__ import annotations

import importlib
import sys
import time
import warnings
from pathlib import Path

import torch
from cases import load


def main() -> None:
    name, case_file, gradient_file, threads = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    meta_gradient = importlib.import_module(f"contenders.{name}").make(*load(Path(case_file)))
    gradient = [torch.as_tensor(g).detach().double().flatten() for g in meta_gradient()]
    torch.save(torch.cat(gradient), gradient_file)
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        meta_gradient()
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
