"""Square matrix products with as many operations as the meta-gradient: a lower bound on its time.

The operations are those of the convolutions and matrix products under autograd; Winograd
convolutions need fewer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._common.contenders import plain_autograd
from benchmarks.rivals.cases import Case

SIZE = 512


def make(case: Case, module: Any, batch: Any) -> Any:
    if case.network == "mlp":
        raise ImportError("matrix products of this size measure overhead only")
    with FlopCounterMode(display=False) as counter:
        plain_autograd.make(case, module, batch)()
    left, right = torch.randn(2, SIZE, SIZE)
    count = counter.get_total_flops() / (2 * SIZE**3)

    def multiply() -> None:
        for _ in range(int(count)):
            left @ right
        # The fraction left over, as some of the columns.
        left @ right[:, : round(SIZE * (count % 1))]

    return multiply
