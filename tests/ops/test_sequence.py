"""The sequence step against its reference, which takes Hessian-vector products by autograd."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmeta import _testing, ops
from fastmeta.reference.mlp import LOSSES
from tests.helpers.sequence_cases import (
    NETWORKS,
    ORDERS,
    TOLERANCE,
    Network,
    check,
    examples,
    network,
    options,
)


def problem(name: str, loss: str = "cross_entropy", **how: Any) -> tuple[Network, list[Any]]:
    net = network(name)
    data = examples(net, loss, **how)
    return net, [[p.to(data[0].dtype) for p in net.params], *data]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_matches_the_reference(loss: str, name: str, order: str) -> None:
    for steps in (0, 1, 5) if order == "second order" else (3,):
        net, args = problem(name, loss)
        how = options(net, loss, order, steps)
        check(ops.sequence_step(*args, record_inner=steps > 0, **how), args, how)


@pytest.mark.parametrize("name", NETWORKS)
def test_matches_the_reference_in_float32(name: str) -> None:
    net, args = problem(name, dtype=torch.float32)
    for order in ORDERS:
        how = options(net, order=order, steps=1)
        check(ops.sequence_step(*args, **how), args, how)


def test_fewer_query_than_support_examples_and_ignored_targets() -> None:
    net, args = problem("pooled", shots=(9, 4))
    args[2][:, :2] = -100
    how = options(net)
    check(ops.sequence_step(*args, **how), args, how)


@pytest.mark.parametrize("order", ["first order", "second order", "all similarities"])
@pytest.mark.parametrize("name", ["strided", "pooled", "wide", "activations"])
def test_bitwise_equal_for_any_number_of_threads_and_tasks(name: str, order: str) -> None:
    net, args = problem(name, tasks=5, shots=(20, 30), dtype=torch.float32)
    how = options(net, order=order) | {"record_inner": True}
    torch.set_num_threads(1)
    expected = ops.sequence_step(*args, **how)
    for threads in (2, 3, 7, 11):  # with 11, the kernels run in parallel instead of the tasks
        torch.set_num_threads(threads)
        found = ops.sequence_step(*args, **how)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    alone = ops.sequence_step(args[0], *(t[4:5] for t in args[1:]), **how)
    assert all(torch.equal(a[0], b[4]) for a, b in zip(alone, expected, strict=True))


@pytest.mark.parametrize("order", ["first order", "second order"])
@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_large_maps_run_a_few_images_at_a_time(downsample: str, order: str) -> None:
    """By size: see each_group and with_input in sequence_evaluation.h."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    if downsample == "pool":
        net = Network(1, 32, 32).conv(32).norm(True).conv(3).act("gelu").norm(True).linear(192)
    else:
        net = Network(1, 32, 32).conv(32, 2).norm().conv(3, 2).norm().act("gelu").linear(192)
    torch.set_default_dtype(before)
    args = [net.params, *examples(net, "cross_entropy", 2, (17, 19))]
    how = options(net, order=order, steps=1)
    check(ops.sequence_step(*args, record_inner=True, **how), args, how)


def memory(net: Network, shots: tuple[int, int], order: str, steps: int = 1) -> int:
    """What a task takes, in values."""
    args = [net.params, *examples(net, "cross_entropy", 1, shots, torch.float32)]
    workspace = ops.Workspace()
    torch.set_num_threads(1)
    ops.sequence_step(*args, workspace=workspace, **options(net, order=order, steps=steps))
    return workspace.take(net.params[0], 0).numel()


@pytest.mark.parametrize("order", ["first order", "second order"])
@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_memory_is_that_of_the_values_above_the_first_layer(downsample: str, order: str) -> None:
    """Without pooling, those of the second layer take the place of those above the third."""
    pool, stride = downsample == "pool", 1 + (downsample == "stride")
    net = Network(1, 40, 40).conv(32, stride).norm(pool).conv(32, stride).norm(pool).linear(3200)
    second, third, last = 20 * 20 * 32, (20 // stride) ** 2 * 32, 10 * 10 * 32 + 16
    maps = second + third + (last if pool else 0) + 16  # with probabilities
    each = (memory(net, (2, 90), order) - memory(net, (2, 50), order)) / 40
    head = 2 * (3200 + 16)  # scratch of the linear layer
    assert maps <= each <= maps + head


@pytest.mark.parametrize("order", ["first order", "head", "second order"])
def test_memory_of_conv4_on_omniglot(order: str) -> None:
    """One vector of parameters, since gradients and directions are where the results go.

    Gradients of the inner step are kept from the lowest layer that is differentiated on, but for
    those of convolutions.
    """
    net = Network(1, 28, 28)
    for _ in range(4):
        net.conv(64, 2).norm()
    net.linear(256)
    params = sum(p.numel() for p in net.params)
    second, third = 14 * 14 * 64, 7 * 7 * 64
    query = 75 * (third + second + 16)  # with probabilities
    bound = params + query + 2**17 + 10 * 64**2  # a part of the first layer, and a weight gradient
    norms = third + 4 * 4 * 64 + 2 * 2 * 64
    if order != "first order":
        bound += 5 * (2 * norms + 3 * 16)  # values, their gradients, and probabilities
    if order == "head":
        bound += params  # the cotangent, since not all parameters are differentiated
    if order == "second order":
        bound += 5 * (norms + second)
        bound += 5 * second  # the second terms of a layer's tangents
    assert memory(net, (5, 75), order) <= bound


def test_a_workspace_may_be_shared_by_different_calls() -> None:
    workspace = ops.Workspace()
    for name, dtype in (("wide", torch.float32), ("strided", torch.float64), ("wide",) * 2):
        dtype = dtype if isinstance(dtype, torch.dtype) else torch.float64
        net, args = problem(name, dtype=dtype)
        how = options(net)
        found = ops.sequence_step(*args, workspace=workspace, **how)
        again = ops.sequence_step(*args, **how)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True) if a is not None)


@pytest.mark.parametrize("order", ["first order", "second order"])
def test_images_in_any_memory_format(order: str) -> None:
    net, args = problem("pooled")
    how = options(net, order=order)
    expected = ops.sequence_step(*args, **how)
    last = [x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for x in args[1::2]]
    sparse = [x.repeat_interleave(2, dim=-1)[..., ::2] for x in args[1::2]]
    for support, query in (last, sparse, (last[0], args[3]), (args[1], last[1])):
        found = ops.sequence_step(args[0], support, args[2], query, args[4], **how)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if a is not None)


def test_statistics() -> None:
    net, args = problem("strided")
    how = options(net, steps=1) | {"lr": 1e-9}
    found = ops.sequence_step(*args, **how).statistics
    images = torch.conv2d(args[1][0], *args[0][:2], stride=2, padding=1)
    assert found.shape == (3, 2, 2 * (5 + 17 + 6))
    torch.testing.assert_close(found[0, 0, :5], images.mean((0, 2, 3)))
    torch.testing.assert_close(found[0, 0, 5:10], images.var((0, 2, 3), correction=0))


_RUN = """
import sys, torch
from fastmeta import build_info, ops
assert build_info().cpu_isa == sys.argv[1]
cases = torch.load(sys.argv[2], weights_only=False)
torch.save([list(ops.sequence_step(*args, **how)) for args, how in cases], sys.argv[3])
"""


def test_other_instruction_sets(tmp_path: Path) -> None:
    cases = []
    for name, dtype in (("pooled", torch.float64), ("wide", torch.float32)):
        net, args = problem(name, dtype=dtype)
        cases.append((args, options(net, steps=1) | {"record_inner": True}))
    torch.save(cases, tmp_path / "cases")
    expected = [ops.sequence_step(*args, **how) for args, how in cases]
    for isa in _testing.instruction_sets()[:-1]:
        command = [sys.executable, "-c", _RUN, isa, tmp_path / "cases", tmp_path / "found"]
        subprocess.run(command, check=True, env={**os.environ, "FASTMETA_CPU_ISA": isa})
        for found, wanted in zip(torch.load(tmp_path / "found"), expected, strict=True):
            for x, y in zip(found, wanted, strict=True):
                assert (x - y).norm() <= TOLERANCE[y.dtype] * y.norm()


def test_no_tasks() -> None:
    net, args = problem("pooled")
    found = ops.sequence_step(args[0], *(t[:0] for t in args[1:]), **options(net))
    assert found.meta_gradients.shape == (0, sum(p.numel() for p in net.params))


Change = Callable[[list[Any], dict[str, Any]], Any]
BAD: dict[str, tuple[Change, str]] = {
    "a parameter without a layer": (lambda a, h: a[0].append(a[0][-1]), "14 has no layer"),
    "another number of channels": (lambda a, h: a.__setitem__(1, a[1][:, :, :2]), "(out, 2, 3, 3)"),
    "two dtypes": (lambda a, h: a[0].__setitem__(0, a[0][0].float()), "one dtype"),
    "a class too many": (lambda a, h: a[2].fill_(3), "class 3 is not one of the 3 outputs"),
    "no example": (lambda a, h: a.__setitem__(3, a[3][:, :0]), "at least one"),
    "negative steps": (lambda a, h: h.update(steps=-1), "must not be negative"),
    "no inner step": (lambda a, h: h.update(steps=0, record_inner=True), "at least one inner step"),
    "no head": (lambda a, h: h.update(layers=h["layers"][:-1]), "the last layer must be linear"),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_arguments_are_refused(name: str) -> None:
    net, args = problem("pooled")
    how = options(net) | {"differentiated": None}
    change, message = BAD[name]
    change(args, how)
    with pytest.raises(RuntimeError, match=r"fastmeta: sequence_step: .*") as caught:
        ops.sequence_step(*args, **how)
    assert message in str(caught.value)


def test_invalid_options_are_refused() -> None:
    net, args = problem("strided")
    how = options(net)
    for change, message in (
        ({"loss": "l1"}, "unknown loss 'l1'"),
        ({"differentiated": [[True]]}, r"each of the 14 parameters; got masks of \[1\]"),
        ({"layers": [net.layers[0]._replace(kind="fold")]}, "unknown kind 'fold'"),
        ({"layers": [net.layers[0]._replace(activation="sin")]}, "unknown activation 'sin'"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.sequence_step(*args, **(how | change))
    with pytest.raises(RuntimeError, match=r"outside of torch\.func transforms"):
        torch.func.vmap(lambda x: ops.sequence_step(args[0], x, *args[2:], **how).query_loss)(
            args[1][None]
        )
