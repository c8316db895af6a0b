"""Attention on a GPU against the reference on the CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastmeta import ops, reference
from tests.cuda.gpu import needs_gpu
from tests.ops.attention_cases import CONFIGS, TOLERANCE, check, derivatives, tangents

pytestmark = needs_gpu


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_against_float64(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    tensors, mask = config.tensors(dtype), config.make_mask(dtype)
    q, _, v = tensors
    upstream = [torch.randn_like(t) for t in (q.new_empty(*q.shape[:-1], v.shape[-1]), *tensors)]
    exact = [[t.double() for t in group] for group in (tensors, upstream)]
    moved = [[t.cuda() for t in group] for group in (tensors, upstream)]
    own = wide = None
    if mask is not None:
        own, wide = mask.cuda(), mask if mask.dtype == torch.bool else mask.double()
    found = partial(ops.attention, mask=own, **config.options)
    expected = partial(reference.attention, mask=wide, **config.options)
    for compute in (derivatives, tangents):
        results = compute(found, *moved)
        assert all(t.is_cuda for t in results)
        check([t.cpu() for t in results], compute(expected, *exact), dtype)


def test_wide_heads_are_refused() -> None:
    q = torch.zeros(1, 1, 2, 129, device="cuda")
    with pytest.raises(RuntimeError, match="at most 128 wide"):
        ops.attention(q, q, q)
