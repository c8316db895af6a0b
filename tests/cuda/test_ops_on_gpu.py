"""Every op on a GPU against the reference on the CPU; synchronization, CUDA graphs, streams."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.clock import launched
from fastmeta import ops
from fastmeta.backend import kernels
from fastmeta.learners import METHODS, build
from tests.cuda.gpu import needs_gpu, replayed, without_synchronization
from tests.helpers.op_arguments import SAMPLES
from tests.helpers.op_cases import CASES, DTYPES, Case, check, listed
from tests.helpers.problems import MODULES, loss, tasks

pytestmark = needs_gpu

SIZES = [
    *((1, 1), (2, 0), (3, 31), (5, 33), (33, 1021), (7, 4097), (16, 100_003), (129, 8209)),
    (4, 1_000_003),
]


def on_gpu(values: Any) -> Any:
    """Moves the tensors in nested lists and tuples to the GPU."""
    if isinstance(values, Tensor):
        return values.cuda()
    if isinstance(values, list | tuple):
        return type(values)(map(on_gpu, values))
    return values


def results(case: Case, tensors: Any) -> list[Tensor]:
    return listed(case.op(*tensors))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    for count, columns in SIZES:
        if case.scalar and columns < 2:
            continue
        tensors = case.inputs(dtype, count, columns)
        found = results(case, on_gpu(tensors))
        assert all(f.is_cuda for f in found)
        check(case, tensors, [f.cpu() for f in found])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bitwise_reproducible_on_any_stream(case: Case, dtype: torch.dtype) -> None:
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
def test_no_synchronization_and_capture_in_a_graph(case: Case) -> None:
    tensors = on_gpu(case.inputs(torch.float32, 6, 10_007))
    expected = results(case, tensors)
    without_synchronization(lambda: results(case, tensors))
    found = replayed(lambda: results(case, tensors))
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


KERNELS = {
    "gram": "gram",
    "row_similarity": "row_similarity",
    "mean_similarity": "mean_similarity",
    "combine": "combine",
    "combine two by segment": "combine",
    "gsl_coefficients norm-match": "gsl_coefficients",
    "agreement_weights": "task_weights",
    "gsl_task_weights softmax": "task_weights",
}


@pytest.mark.parametrize("case", [c for c in CASES if c.name in KERNELS], ids=str)
def test_one_launch(case: Case) -> None:
    tensors = on_gpu(case.inputs(torch.float32, 40, 100_003))
    found = launched(lambda: results(case, tensors))
    assert found.pop("Memset", 0) <= 1  # the counters of finished blocks
    assert found == {f"{KERNELS[case.name]}_kernel": 1}


def test_similarity_weight_and_combine_are_three_launches() -> None:
    u, v = torch.randn(2, 8, 100_003, device="cuda")
    weight, rate = torch.ones(8, device="cuda"), torch.ones(1, device="cuda")
    found = launched(
        lambda: ops.combine([u, v], ops.gsl_coefficients(ops.row_similarity(u, v), weight, rate))
    )
    kernels = ("row_similarity_kernel", "gsl_coefficients_kernel", "combine_kernel")
    assert found == {"Memset": 1, **dict.fromkeys(kernels, 1)}


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name: str) -> None:
    if name.startswith("conv_"):
        pytest.skip("convolutions have CPU kernels only")
    torch.library.opcheck(
        getattr(kernels, name).default,
        on_gpu(SAMPLES[name](torch.randn(3, 7))),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"),
    )


def test_pack_and_unpack_tensors_of_many_sizes() -> None:
    sizes = [1, 0, 31, 4099, *range(1, 2500)]  # more copies than one launch takes
    given = [torch.randn(n, device="cuda") for n in sizes]
    flat = ops.pack(given)
    assert torch.equal(flat, torch.cat(given)[None])
    back = [torch.empty_like(t) for t in given]
    ops.unpack_(back, flat)
    assert all(torch.equal(b, g) for b, g in zip(back, given, strict=True))


ON_PLAIN_NETWORKS = [m for m in METHODS if m not in ("cml", "maml++") and "warp" not in m]


@pytest.mark.parametrize("method", ON_PLAIN_NETWORKS)
def test_a_meta_gradient_equals_that_of_the_cpu(method: str) -> None:
    batch, module = tasks(3), MODULES["batch norm"]().double()
    found = []
    for device in ("cpu", "cuda"):
        own = copy.deepcopy(module).to(device)
        learner = build(method, own, loss, inner_lr=0.1, inner_steps=2)
        flat, result = learner.meta_gradient(batch.to(device))
        found.append((flat.cpu(), result.query_loss.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-7, atol=1e-10)
