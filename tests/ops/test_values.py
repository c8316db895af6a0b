"""Every op against its reference in float64: dtypes, awkward sizes, layouts, threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.op_cases import CASES, DTYPES, Case, check, listed

SIZES = [
    *((1, 1), (2, 0), (3, 31), (5, 33), (1, 4096), (33, 1021), (32, 130), (7, 4097), (2, 10007)),
    *((17, 20011), (64, 65)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    for tasks, columns in SIZES:
        if case.scalar and columns < 2:
            continue
        tensors = case.inputs(dtype, tasks, columns)
        check(case, tensors, listed(case.op(*tensors)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_strides(case: Case, dtype: torch.dtype) -> None:
    tensors = case.inputs(dtype, 5, 77)
    expected = listed(case.op(*tensors))

    def spread(t: Tensor) -> Tensor:  # every second element of a larger tensor, offset by one
        if t.dim() == 0:
            return t
        large = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"), dtype=t.dtype)
        large[..., 1::2] = t
        return large[..., 1::2]

    layouts = {
        "gaps": spread,
        "transposed": lambda t: t.mT.contiguous().mT if t.dim() >= 2 else t,
        "offset": lambda t: torch.cat([t[:1], t])[1:] if t.dim() and len(t) else t,
    }
    for name, layout in layouts.items():
        found = listed(case.op(*(layout(t) for t in tensors)))
        for f, e in zip(found, expected, strict=True):
            assert torch.equal(f, e), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bitwise_equal_for_any_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    tensors = case.inputs(dtype, 6, 40_009)
    torch.set_num_threads(1)
    expected = listed(case.op(*tensors))
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        for found, first in zip(listed(case.op(*tensors)), expected, strict=True):
            assert torch.equal(found, first), threads


@pytest.mark.parametrize("case", [c for c in CASES if not c.scalar], ids=str)
def test_inputs_are_unchanged(case: Case) -> None:
    tensors = case.inputs(torch.float32, 3, 50)
    before = [t.clone() for t in tensors]
    outputs = listed(case.op(*tensors))
    for t, b in zip(tensors, before, strict=True):
        assert torch.equal(t, b)
        assert all(o.data_ptr() != t.data_ptr() for o in outputs if o.numel())


@pytest.mark.parametrize("case", [c for c in CASES if not c.scalar], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_propagate(case: Case, value: float) -> None:
    tensors = case.inputs(torch.float32, 3, 50)
    tensors[-1 if case.name.startswith("combine") else 0].view(-1)[3] = value
    found, expected = listed(case.op(*tensors)), listed(case.reference(*tensors))
    assert not all(o.isfinite().all() for o in found)
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f.isfinite(), e.isfinite())


@pytest.mark.parametrize("case", [c for c in CASES if c.scalar], ids=str)
def test_nan_statistics_give_nan_weights(case: Case) -> None:
    stats, *others = case.inputs(torch.float32, 3, 50)
    stats[1, ..., 0] = float("nan")
    assert case.op(stats, *others)[1].isnan().any()
    assert case.reference(stats, *others)[1].isnan().any()
