"""Process of a contender: ``benchmarks.transformers.worker CONTENDER CASE GRADIENT THREADS``.

Writes its meta-gradient, if it has one, to GRADIENT, then answers requests, see
``benchmarks._common.serve``.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from benchmarks._common.case_file import load
from benchmarks._common.serve import limit_threads, serve
from benchmarks.transformers.cases import Case, batch
from benchmarks.transformers.contenders import CONTENDERS
from benchmarks.transformers.networks import build


def main() -> None:
    name, case_path, gradient_file, threads = sys.argv[1:]
    warnings.simplefilter("ignore")
    limit_threads(int(threads))
    case, module, parts = load(Path(case_path), Case, build)

    def make() -> Any:
        contender, tiny = CONTENDERS[name], case.tiny()
        if not contender.compiled:
            contender.make(tiny, *on_device(tiny, build(tiny), batch(tiny)))()
        return contender.make(case, *on_device(case, module, parts))

    serve(make, Path(gradient_file), case.device, release_memory=True)


def on_device(case: Case, module: Any, parts: Any) -> tuple[Any, list[Any]]:
    """The network and the data, on the device of the case."""
    return module.to(case.device), [part.to(case.device) for part in parts]


if __name__ == "__main__":
    main()
