"""Matrix products with as many multiplications as a computation: a lower bound on its time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

_SIZE = 512


def products(run: Callable[[], object]) -> float:
    """How many of [`matrix_product`][fastmeta.tuning.floor.matrix_product]'s products do the work.

    Counts convolutions, matrix products and attention as torch calls them, not compiled ops.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / (2 * _SIZE**3)


def matrix_product(device: torch.device) -> Callable[[], object]:
    """One product of square matrices in float32, to be timed."""
    left, right = torch.randn(2, _SIZE, _SIZE, device=device)
    return lambda: left @ right
