"""Every op on a GPU against its twin on the CPU; no waiting, in graphs, on any stream."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from op_cases import CASES, DTYPES, Case, check, listed
from op_samples import SAMPLES
from problems import MODULES, loss, tasks
from torch import Tensor

from fastmeta import ops
from fastmeta._library import kernels
from fastmeta.info import kernel_devices
from fastmeta.learners import METHODS, build

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or "cuda" not in kernel_devices(),
    reason="needs a CUDA device and the CUDA kernels",
)

SIZES = [
    *((1, 1), (2, 0), (3, 31), (5, 33), (33, 1021), (7, 4097), (16, 100_003), (129, 8209)),
    (4, 1_000_003),
]


def on_gpu(values: Any) -> Any:
    """The tensors in nested lists and tuples on the GPU, all else as it is."""
    if isinstance(values, Tensor):
        return values.cuda()
    if isinstance(values, list | tuple):
        return type(values)(map(on_gpu, values))
    return values


def results(case: Case, tensors: Any) -> list[Tensor]:
    return listed(case.op(*tensors))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_twin(case: Case, dtype: torch.dtype) -> None:
    for count, columns in SIZES:
        if case.scalar and columns < 2:
            continue
        tensors = case.inputs(dtype, count, columns)
        found = results(case, on_gpu(tensors))
        assert all(f.is_cuda for f in found)
        check(case, tensors, [f.cpu() for f in found])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_every_time_on_any_stream(case: Case, dtype: torch.dtype) -> None:
    tensors = on_gpu(case.inputs(dtype, 9, 50_021))
    expected = results(case, tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(3):
        with torch.cuda.stream(stream):
            found = results(case, tensors)
        stream.synchronize()
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_wait_for_the_gpu_and_capture_in_a_graph(case: Case) -> None:
    tensors = on_gpu(case.inputs(torch.float32, 6, 10_007))
    expected = results(case, tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(case, tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = results(case, tensors)
    for f in found:
        f.fill_(float("nan"))
    graph.replay()
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name: str) -> None:
    if name.startswith("conv_"):
        pytest.skip("convolutions have CPU kernels only")
    torch.library.opcheck(
        getattr(kernels, name).default,
        on_gpu(SAMPLES[name](torch.randn(3, 7))),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"),
    )


def test_rows_and_tensors_of_many_sizes_travel_both_ways() -> None:
    sizes = [1, 0, 31, 4099, *range(1, 2500)]  # more copies than one launch takes
    given = [torch.randn(n, device="cuda") for n in sizes]
    flat = ops.pack(given)
    assert torch.equal(flat, torch.cat(given)[None])
    back = [torch.empty_like(t) for t in given]
    ops.unpack_(back, flat)
    assert all(torch.equal(b, g) for b, g in zip(back, given, strict=True))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("cml", "maml++")])
def test_a_meta_gradient_equals_that_of_the_cpu(method: str) -> None:
    batch, module = tasks(3), MODULES["batch norm"]().double()
    found = []
    for device in ("cpu", "cuda"):
        own = copy.deepcopy(module).to(device)
        learner = build(method, own, loss, inner_lr=0.1, inner_steps=2)
        flat, result = learner.meta_gradient(batch.to(device))
        found.append((flat.cpu(), result.query_loss.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-7, atol=1e-10)
