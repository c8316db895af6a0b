"""CUDA kernels of attention, emulated on the CPU, against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fastmeta._testing import cuda

from fastmeta import reference
from tests.cuda.emulation import array, name, run
from tests.ops.attention_cases import CONFIGS, Config, check

SIZES = {
    **{key: CONFIGS[key] for key in ("one token", "31", "33 causal", "odd width")},
    "two tiles": Config(33, 65, 1, 1, 40, 7),
    "more queries": Config(70, 31, 1, 1, causal=True),
    "grouped queries": Config(33, 35, 4, 2, causal=True),
    "causal window": Config(70, 70, 1, 1, causal=True, window=20),
    "window": Config(34, 70, 1, 1, window=3),
    "boolean mask": Config(35, 33, mask="keep"),
    "additive mask": Config(33, 33, mask="add"),
    "wide": Config(17, 33, 1, 1, 128, 128),
}
WIDTHS = {
    "127 of width 64": Config(127, 127, 1, 1, 64, 64, causal=True),
    "65 to 80 of width 96": Config(65, 80, 1, 1, 96, 72),
    "padding, of width 32": Config(20, 70, 4, 1, 32, 32, mask="padding"),
}


# Half precision runs on tensor cores from sm_80 on.
TURING, AMPERE = 75, 80
HALF = (torch.bfloat16, torch.float16)
CASES = [
    *((size, dtype, True, AMPERE) for size in SIZES for dtype in (torch.float64, torch.float32)),
    *((size, torch.float32, False, AMPERE) for size in ("one token", "33 causal")),
    *((size, dtype, True, TURING) for size in ("31", "additive mask") for dtype in HALF),
    *((size, torch.bfloat16, True, AMPERE) for size in (*SIZES, *WIDTHS)),
    *((size, torch.float16, True, AMPERE) for size in ("31", "additive mask", "wide")),
    *((size, torch.bfloat16, False, AMPERE) for size in ("one token", "33 causal")),
]


@pytest.mark.parametrize(("size", "dtype", "along", "capability"), CASES, ids=str)
def test_against_reference(size: str, dtype: torch.dtype, along: bool, capability: int) -> None:
    """`along`: whether `dout` has a tangent, too. `capability`: of the GPU."""
    config = replace({**SIZES, **WIDTHS}[size], scale=0.3)
    # Tokens before heads in memory, as the modules of torch have them.
    q, k, v, tq, tk, tv = (
        t.transpose(1, 2).contiguous().transpose(1, 2)
        for t in (*config.tensors(dtype), *config.tensors(dtype))
    )
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=dtype)
    dout, tdout = torch.randn_like(out), torch.randn_like(out)
    mask = config.make_mask(dtype)
    whole = None
    if mask is not None:
        whole = mask.expand(*q.shape[:-1], k.shape[-2]).contiguous()
    shapes = [tuple(t.shape) for t in (out, q, k, v, out, out, q, k, v)]
    accumulated = reference.accumulation_dtype(dtype)
    stats = torch.empty(2, config.heads, 2, config.queries, dtype=accumulated)

    def call(outputs: list, seed: int) -> None:
        cuda.attention(
            name(dtype),
            [array(t) for t in (q, k, v, dout, tdout, tq, tk, tv)],
            None if whole is None else array(whole),
            *(along, config.causal, config.window or 0, 0.3, capability),
            [outputs[0], stats.numpy(), *outputs[1:]],
            seed,
        )

    found = run(shapes, dtype, call)
    wide = [t.double() for t in (dout, tdout, tq, tk, tv, q, k, v)]
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.double()
    options = (mask, config.causal, config.window, 0.3)
    second = reference.attention_second(wide[0], wide[1] if along else None, *wide[2:], *options)
    expected = [
        reference.attention(*wide[5:], *options),
        *reference.attention_backward(wide[0], *wide[5:], *options),
        second[0],
        *second,
    ]
    check(found, expected, dtype)
