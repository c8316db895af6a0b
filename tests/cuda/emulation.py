"""Runs CUDA kernels emulated on the CPU, in several orders of blocks and threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fastmeta._testing import cuda
from torch import Tensor

SEEDS = (1,) if cuda.sanitizers else (1, 2, 3)  # sanitizers are slow, and independent of the order
STRIP = 64


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def array(t: Tensor) -> np.ndarray:
    """The tensor's memory; half precision as raw bits."""
    return (t.view(torch.int16) if t.element_size() == 2 else t).numpy()


def guarded(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for an output between two guard strips; elements that are never written stay NaN."""
    size = int(np.prod(shape))
    whole = torch.full((size + 2 * STRIP,), 7.0, dtype=dtype)
    whole[STRIP : STRIP + size] = float("nan")
    return whole


def run(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, call: Callable[..., Any]
) -> list[Tensor]:
    """Outputs of a kernel for several orders, which must agree bit for bit."""
    results = []
    for seed in SEEDS:
        memory = [guarded(shape, dtype) for shape in shapes]
        views = [w[STRIP:-STRIP].view(shape) for w, shape in zip(memory, shapes, strict=True)]
        call([array(view) for view in views], seed)
        for whole in memory:
            assert (whole[:STRIP] == 7).all()
            assert (whole[-STRIP:] == 7).all()
        results.append(views)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert array(a).tobytes() == array(b).tobytes()
    return results[0]
