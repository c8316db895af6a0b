"""The CUDA kernel of the MLP step against the reference: emulated on the CPU, and on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fastmeta._testing import cuda
from torch import Tensor, nn

from fastmeta import MAML, TaskBatch, ops
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.engines._recognition import read_mlp
from fastmeta.engines.base import StepSpec
from fastmeta.engines.mlp import _beyond_limits
from fastmeta.functional import FunctionalModule
from fastmeta.metagrad import Exact
from fastmeta.models import MLP
from fastmeta.ops import MlpStep
from fastmeta.ops.mlp import MAX_LAYERS, MAX_MASKS, MAX_PRODUCTS
from fastmeta.reference.mlp import ACTIVATIONS, LOSSES
from tests.cuda.emulation import array, name, run
from tests.cuda.gpu import needs_gpu, replayed, without_synchronization
from tests.helpers.mlp_cases import (
    NETWORKS,
    ORDERS,
    STEPS_AND_ORDERS,
    check,
    examples,
    network,
    of_order,
    options,
    problem,
)
from tests.helpers.problems import tasks

SOME_ORDERS = ("first order", "second order", "head", "all similarities")
SHARED_SIZE = 28_000  # elements of shared memory: 219 KB of float64


def emulated(
    args: list[Any], how: dict[str, Any], shared_size: int = SHARED_SIZE, blocks: int = 2**31
) -> tuple[MlpStep, tuple[int, int]]:
    """The results of several orders, which agree bit for bit, and the numbers of elements of a
    block's shared memory and scratch.
    """
    params, *data = args
    count, dtype, steps = len(data[0]), data[0].dtype, how["steps"]
    size, out = sum(p.numel() for p in params), params[-1].shape[0]
    numbers = [list(ACTIVATIONS).index(a) for a in how["activations"]]
    masks = [int(used) for mask in how["differentiated"] for used in mask]
    lams = [how.get("lam_d", 1.0), how.get("lam_c", 0.0), how.get("lam_2", 0.0)]
    memory = []

    def call(results: list[Any], seed: int) -> None:
        memory.append(
            cuda.mlp_step(
                name(dtype),
                *([array(t) for t in tensors] for tensors in (params, data)),
                *(numbers, list(LOSSES).index(how["loss"]), how["lr"], steps, masks, lams),
                *(shared_size, blocks, results, seed),
            )
        )

    output = (count, data[2].shape[1], out)
    shapes = [(count, size), (count if steps else 0, size), (count,), (count,), output]
    rows, inner, *rest = run(shapes, dtype, call)
    return MlpStep(rows, inner if steps else None, *rest), memory[0]


def compare(args: list[Any], how: dict[str, Any]) -> None:
    check(emulated(args, how)[0], args, how)


def wide(
    loss: str, order: str, dtype: torch.dtype = torch.float64
) -> tuple[list[Any], dict[str, Any]]:
    """Both thread mappings of products and reductions, with more support than query examples."""
    widths = [31, 67, 33, 5]
    args = [network(widths, dtype), *examples(widths, loss, 2, dtype, shots=(33, 29))]
    how = {"activations": ["silu", "tanh"], "loss": loss, "lr": 0.07, "steps": 2}
    return args, how | of_order(order, 3)


@pytest.mark.parametrize(("steps", "order"), STEPS_AND_ORDERS)
@pytest.mark.parametrize("shape", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_matches_the_reference(loss: str, shape: str, steps: int, order: str) -> None:
    compare(problem(shape, loss), options(shape, loss, order=order, steps=steps))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, order: str) -> None:
    compare(problem("sine"), options("sine", "mse", activation, order))


@pytest.mark.parametrize("order", SOME_ORDERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "relu"])
def test_float32(activation: str, loss: str, order: str) -> None:
    """Without ReLU: near its kink, rounding changes which side is taken."""
    shape = "sine" if loss == "mse" else "three hidden"
    compare(problem(shape, loss, dtype=torch.float32), options(shape, loss, activation, order))


@pytest.mark.parametrize("order", ["second order", "all similarities"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_wide_layers(loss: str, dtype: torch.dtype, order: str) -> None:
    compare(*wide(loss, order, dtype))


def test_layers_without_bias() -> None:
    args = problem("sine")
    del args[0][3]  # the bias of the second layer alone
    for order in ORDERS:
        compare(problem("three hidden", bias=False), options("three hidden", order=order))
        compare(args, options(order=order))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_cosine_with_a_zero_gradient(dtype: torch.dtype) -> None:
    args, how = problem("sine", dtype=dtype), options(order="cosine", steps=1)
    for param in args[0][-2:]:
        param.zero_()
    args[2].zero_()
    compare(args, how)


@pytest.mark.parametrize("order", SOME_ORDERS)
def test_buffers_in_shared_memory_or_scratch(order: str) -> None:
    args, how = problem("sine", tasks=2), options(order=order)
    expected, (shared, scratch) = emulated(args, how)
    assert shared > 0
    assert scratch == 0
    everything = shared
    for shared_size in range(0, everything, everything // 9):
        found, (shared, scratch) = emulated(args, how, shared_size)
        assert shared <= shared_size
        assert scratch == everything - shared > 0
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shared_size", [0, SHARED_SIZE])
def test_more_tasks_than_blocks(shared_size: int) -> None:
    args, how = problem(tasks=5), options(order="all similarities")
    expected, _ = emulated(args, how)
    found, _ = emulated(args, how, shared_size, blocks=2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    check(found, args, how)


@pytest.mark.parametrize("order", ORDERS)
def test_ignored_targets(order: str) -> None:
    shape, loss = "three hidden", "cross_entropy"
    args, how = problem(shape, loss), options(shape, loss, order=order)
    args[2][:, :4] = -100
    args[4][:, 5] = -100
    compare(args, how)
    args[4][1] = -100  # a mean over no examples
    assert emulated(args, how)[0].query_loss.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("place", [2, 4])
@pytest.mark.parametrize("number", [-1, 3, 2**40])
def test_an_invalid_class_gives_nan(place: int, number: int) -> None:
    shape, loss = "three hidden", "cross_entropy"
    args, how = problem(shape, loss), options(shape, loss)
    args[place][1, 3] = number
    found, _ = emulated(args, how)
    assert found.meta_gradients.isnan().all(1).tolist() == [False, True, False]
    assert found.query_loss.isnan().tolist() == [False, True, False]


def test_no_tasks() -> None:
    params, *rest = problem("sine")
    found, _ = emulated([params, *(t[:0] for t in rest)], options())
    assert found.query_output.shape == (0, 10, 1)


def of_zeros(examples: int) -> TaskBatch:
    """A task of zeros with a query set of this size."""
    x = torch.zeros(1, 1, 2)
    return TaskBatch(x, x, *(x.expand(1, examples, 2),) * 2)


def test_beyond_the_cuda_limits_the_loop_runs() -> None:
    def reason(hidden: list[int], n: int = 1, masks: int = 1, steps: int = 100) -> str | None:
        model, layers = MLP(2, 2, hidden), "/".join(["head"] * masks)
        spec = StepSpec(FunctionalModule(model), F.mse_loss, SGD(0.1, steps), Exact(layers), Mean())
        network = read_mlp(model)
        assert not isinstance(network, str)
        return _beyond_limits(of_zeros(n), network, spec)

    max_examples = MAX_PRODUCTS // 16  # weights
    assert reason([4], max_examples) is None
    assert f"takes {MAX_PRODUCTS + 16} multiplications" in str(reason([4], max_examples + 1))
    assert reason([1] * (MAX_LAYERS - 1)) is None
    assert f"has {MAX_LAYERS + 1} layers; on CUDA at most" in str(reason([1] * MAX_LAYERS))
    assert reason([4], masks=MAX_MASKS) is None
    assert reason([4], masks=MAX_MASKS + 1, steps=MAX_MASKS) is None
    assert f"for {MAX_MASKS + 1} inner steps" in str(reason([4], masks=MAX_MASKS + 1))


def test_as_many_masks_as_the_limit() -> None:
    """Every layer and every mask that fits into the kernel's parameters."""
    widths = [2] * (MAX_LAYERS + 1)
    args = [network(widths), *examples(widths, "mse", 1)]
    masks = [[k % MAX_LAYERS == layer for layer in range(MAX_LAYERS)] for k in range(MAX_MASKS)]
    how = {"activations": ["tanh"] * (MAX_LAYERS - 1), "loss": "mse", "lr": 0.02}
    compare(args, how | {"steps": MAX_MASKS + 2, "differentiated": masks})


def on_gpu(args: list[Any]) -> list[Any]:
    return [[p.cuda() for p in args[0]], *(t.cuda() for t in args[1:])]


def on_cpu(found: MlpStep) -> MlpStep:
    return MlpStep(*(t if t is None else t.cpu() for t in found))


@needs_gpu
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gpu_matches_the_reference(activation: str, loss: str, shape: str, order: str) -> None:
    args, how = problem(shape, loss, 33), options(shape, loss, activation, order)
    check(on_cpu(ops.mlp_step(*on_gpu(args), record_inner=True, **how)), args, how)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_gpu_with_scratch(loss: str, dtype: torch.dtype) -> None:
    args, how = wide(loss, "all similarities", dtype)
    how["steps"] = 40  # more than shared memory holds
    check(on_cpu(ops.mlp_step(*on_gpu(args), record_inner=True, **how)), args, how)


@needs_gpu
def test_gpu_without_synchronization_and_in_a_graph() -> None:
    args, how = on_gpu(problem()), options()
    expected = ops.mlp_step(*args, **how)
    without_synchronization(lambda: ops.mlp_step(*args, **how))
    found = replayed(lambda: ops.mlp_step(*args, **how))
    assert torch.equal(found.meta_gradients, expected.meta_gradients)


@needs_gpu
def test_gpu_engine() -> None:
    batch = tasks(5).to("cuda")
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    module = module.double().cuda()
    (expected, _), (found, _) = (
        MAML(module, F.cross_entropy, inner_lr=0.2, inner_steps=3, engine=engine).meta_gradient(
            batch
        )
        for engine in ("loop", "mlp")
    )
    assert (found - expected).norm() <= 1e-10 * expected.norm()


@needs_gpu
def test_gpu_limits() -> None:
    params: list[Tensor] = [torch.ones(1, 1, device="cuda")] * (MAX_LAYERS + 1)
    data = [torch.ones(1, 1, 1, device="cuda")] * 4
    how: dict[str, Any] = {"loss": "mse", "lr": 0.1, "steps": 1}
    with pytest.raises(RuntimeError, match=f"on CUDA at most {MAX_LAYERS} layers"):
        ops.mlp_step(params, *data, activations=["tanh"] * MAX_LAYERS, **how)
    ops.mlp_step(params[1:], *data, activations=["tanh"] * (MAX_LAYERS - 1), **how)
