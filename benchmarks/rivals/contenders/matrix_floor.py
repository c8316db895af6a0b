"""The floor: square matrix products with as many operations as the meta-gradient.

Those that autograd's convolutions and matrix products take; Winograd's convolutions need fewer.
"""

from __future__ import annotations

from typing import Any

import torch
from cases import Case
from torch.utils.flop_counter import FlopCounterMode

from contenders import plain_autograd

SIZE = 512


def make(case: Case, module: Any, batch: Any) -> Any:
    if case.network == "mlp":
        raise ImportError("products of this size are all overhead")
    with FlopCounterMode(display=False) as counter:
        plain_autograd.make(case, module, batch)()
    left, right = torch.randn(2, SIZE, SIZE)
    count = counter.get_total_flops() / (2 * SIZE**3)

    def multiply() -> None:
        for _ in range(int(count)):
            left @ right
        # What remains: some of the columns.
        left @ right[:, : round(SIZE * (count % 1))]

    return multiply
