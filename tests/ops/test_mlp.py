"""The MLP step against its reference, which takes Hessian-vector products by autograd."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmeta import _testing, ops, reference
from fastmeta.reference.mlp import ACTIVATIONS, LOSSES
from tests.helpers.mlp_cases import (
    NETWORKS,
    ORDERS,
    STEPS_AND_ORDERS,
    TOLERANCE,
    check,
    examples,
    network,
    of_order,
    options,
    problem,
)


def compare(args: list[Any], how: dict[str, Any]) -> None:
    check(ops.mlp_step(*args, record_inner=how["steps"] > 0, **how), args, how)


@pytest.mark.parametrize(("steps", "order"), STEPS_AND_ORDERS)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_the_reference(
    activation: str, loss: str, name: str, steps: int, order: str
) -> None:
    compare(problem(name, loss), options(name, loss, activation, order, steps))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_the_reference_in_float32(activation: str, loss: str, order: str) -> None:
    # Near the kink of ReLU, rounding changes which side is taken.
    name = "no hidden layer" if activation == "relu" else "sine"
    if name == "sine" and loss == "cross_entropy":
        name = "three hidden"
    compare(problem(name, loss, dtype=torch.float32), options(name, loss, activation, order))


@pytest.mark.parametrize("loss", LOSSES)
def test_relu_in_float32(loss: str) -> None:
    args, how = problem("sine", loss, dtype=torch.float32), options("sine", loss, "relu")
    found, expected = (
        ops.mlp_step(*args, **how).meta_gradients,
        reference.mlp_step(*args, **how)[0],
    )
    assert (found - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("tasks", [1, 5, 33])
@pytest.mark.parametrize("order", ORDERS)
def test_any_number_of_tasks(tasks: int, order: str) -> None:
    compare(problem(tasks=tasks), options(order=order))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_gradient_asked_for_in_other_ways_bitwise(name: str, dtype: torch.dtype) -> None:
    args, layers = problem(name, dtype=dtype), len(NETWORKS[name]) - 1
    how = options(name)
    del how["differentiated"]
    every, none = [True] * layers, [False] * layers
    groups: list[list[dict[str, Any]]] = [
        [
            {},
            {"differentiated": [every]},
            {"differentiated": [every] * 9},
            {"differentiated": [[*every[1:], True], every, every, none]},
        ],
        [
            {"differentiated": [none]},
            {"differentiated": [none] * 3 + [every]},
            {"lam_d": 0.0},
        ],
    ]
    found = [[ops.mlp_step(*args, **how, **way).meta_gradients for way in ways] for ways in groups]
    for ways in found:
        assert all(torch.equal(way, ways[0]) for way in ways[1:])
    assert (found[0][0] - found[1][0]).norm() > 1e-4 * found[0][0].norm()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_cosine_with_a_zero_gradient(dtype: torch.dtype) -> None:
    """Where the network fits the support set exactly."""
    args, how = problem("sine", dtype=dtype), options(order="cosine", steps=1)
    for param in args[0][-2:]:
        param.zero_()
    args[2].zero_()
    compare(args, how)
    assert ops.mlp_step(*args, **how).meta_gradients.isfinite().all()


@pytest.mark.parametrize("widths", [[4, 255, 17, 2], [300, 48, 256, 9]])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_wide_layers_and_mixed_activations(widths: list[int], dtype: torch.dtype) -> None:
    args = [network(widths, dtype), *examples(widths, "cross_entropy", 2, dtype)]
    how = options() | {"activations": ["silu", "gelu"], "loss": "cross_entropy"}
    for order in ORDERS:
        compare(args, how | of_order(order, 3))


def test_layers_without_bias() -> None:
    args = problem("sine")
    del args[0][3]  # the bias of the second layer alone
    for order in ORDERS:
        compare(problem("three hidden", bias=False), options("three hidden", order=order))
        compare(args, options(order=order))


def test_extreme_values_match_torch() -> None:
    for activation in ACTIVATIONS:
        args = problem("sine")
        args[1] *= 200  # saturation, or large numbers
        compare(args, options("sine", "mse", activation) | {"lr": 1e-8})


def test_kinks_match_torch() -> None:
    for activation in ("relu", "elu"):
        args = problem("sine")
        for bias in args[0][1::2]:
            bias.zero_()
        args[1][:, :3] = 0  # every unit of the first layer is at its kink
        for order in ORDERS:
            compare(args, options("sine", "mse", activation, order, 1))


@pytest.mark.parametrize("order", ORDERS)
def test_ignored_targets(order: str) -> None:
    args = problem("three hidden", "cross_entropy")
    how = options("three hidden", "cross_entropy", order=order)
    args[2][:, :4] = -100
    args[4][:, 5] = -100
    compare(args, how)
    args[4][1] = -100  # a mean over nothing
    assert ops.mlp_step(*args, **how).query_loss.isnan().tolist() == [False, True, False]


def test_nan_propagates() -> None:
    for activation in ACTIVATIONS:
        args = problem("sine")
        args[1][1, 2] = float("nan")
        found = ops.mlp_step(*args, **options("sine", "mse", activation))
        assert found.meta_gradients.isnan().any(1).tolist() == [False, True, False]
        assert found.support_loss.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("order", ORDERS)
def test_bitwise_equal_for_any_number_of_threads_and_tasks(order: str) -> None:
    args = problem("three hidden", "cross_entropy", 13, dtype=torch.float32)
    how = options("three hidden", "cross_entropy", "silu", order) | {"record_inner": True}
    torch.set_num_threads(1)
    expected = ops.mlp_step(*args, **how)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        found = ops.mlp_step(*args, **how)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    alone = ops.mlp_step(args[0], *(t[4:5] for t in args[1:]), **how)
    assert all(torch.equal(a[0], b[4]) for a, b in zip(alone, expected, strict=True))


_RUN = """
import sys, torch
from fastmeta import build_info, ops
assert build_info().cpu_isa == sys.argv[1]
cases = torch.load(sys.argv[2])
torch.save([list(ops.mlp_step(*args, **how)) for args, how in cases], sys.argv[3])
"""


def test_other_instruction_sets(tmp_path: Path) -> None:
    cases = [
        (
            problem(name, loss, dtype=dtype),
            options(name, loss, activation, order) | {"record_inner": True},
        )
        for order in ORDERS
        for name, loss, activation, dtype in (
            ("sine", "mse", "elu", torch.float64),
            ("sine", "mse", "tanh", torch.float32),
            ("three hidden", "cross_entropy", "silu", torch.float32),
        )
    ]
    torch.save(cases, tmp_path / "cases")
    expected = [ops.mlp_step(*args, **how) for args, how in cases]
    for isa in _testing.instruction_sets()[:-1]:
        command = [sys.executable, "-c", _RUN, isa, tmp_path / "cases", tmp_path / "found"]
        subprocess.run(command, check=True, env={**os.environ, "FASTMETA_CPU_ISA": isa})
        for found, wanted in zip(torch.load(tmp_path / "found"), expected, strict=True):
            for x, y in zip(found, wanted, strict=True):
                assert (x - y).norm() <= TOLERANCE[y.dtype] * y.norm()


def test_non_contiguous_examples() -> None:
    args = problem("sine")
    gaps = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in args[1:]]
    assert not gaps[0].is_contiguous()
    found, expected = (ops.mlp_step(args[0], *e, **options()) for e in (gaps, args[1:]))
    assert torch.equal(found.meta_gradients, expected.meta_gradients)


def test_results_carry_no_graph() -> None:
    args = problem("sine")
    before = [p.clone() for p in args[0]]
    found = ops.mlp_step([p.requires_grad_() for p in args[0]], *args[1:], **options())
    assert found.inner_gradients is None
    assert not any(t.requires_grad for t in found if t is not None)
    assert all(torch.equal(p, b) for p, b in zip(args[0], before, strict=True))


def test_no_tasks() -> None:
    params, *rest = problem("sine")
    found = ops.mlp_step(params, *(t[:0] for t in rest), **options())
    assert found.meta_gradients.shape == (0, sum(p.numel() for p in params))
    assert found.query_output.shape == (0, 10, 1)


def _changed(place: int, value: Any) -> list[Any]:
    args = problem("three hidden", "cross_entropy")
    args[place] = value(args[place])
    return args


BAD = {
    "no parameter": (0, lambda p: [], "at least one layer"),
    "a bias first": (0, lambda p: p[1:], "expected weights"),
    "a bias of another layer": (0, lambda p: [p[0], p[3], *p[2:]], "one value for each of the 3"),
    "layers that do not fit": (0, lambda p: [*p[:2], *p[4:]], "outputs of the layer before"),
    "too few layers": (0, lambda p: p[:4], "an activation between each two of the 2 layers, got 3"),
    "two dtypes": (0, lambda p: [p[0].float(), *p[1:]], "one dtype"),
    "half precision": (0, lambda p: [t.half() for t in p], "float32 or float64"),
    "a parameter with gaps": (0, lambda p: [p[0].t().contiguous().t(), *p[1:]], "contiguous"),
    "inputs of another size": (1, lambda x: x[..., 1:], "(tasks, examples, 33)"),
    "inputs of another dtype": (1, lambda x: x.float(), "parameters' dtype"),
    "no example": (1, lambda x: x[:, :0], "at least one example"),
    "fewer query tasks": (3, lambda x: x[1:], "query_x"),
    "targets of another number": (2, lambda y: y[:, 1:], "support_y"),
    "targets that are numbers": (4, lambda y: y.double(), "query_y: expected (tasks, examples)"),
    "a class too many": (4, lambda y: y + 1, "query_y: class 3 is not one of the 3 outputs"),
    "a negative class": (2, lambda y: y - 3, "is not one of the 3 outputs, 0 to 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_tensors_are_refused(name: str) -> None:
    place, change, message = BAD[name]
    args = _changed(place, change)
    if "class" in name:
        args[place][..., 0] = 3 if place == 4 else -1
    with pytest.raises(RuntimeError) as caught:
        ops.mlp_step(*args, **options("three hidden", "cross_entropy"))
    assert str(caught.value).startswith("fastmeta: ")
    assert message in str(caught.value).replace("class -1 ", "")


def test_invalid_options_are_refused() -> None:
    args, how = problem("sine"), options()
    for change, message in (
        ({"activations": ["tanh", "cosh"]}, "unknown activation 'cosh'; expected one of relu"),
        ({"loss": "l1"}, "unknown loss 'l1'; expected one of mse, cross_entropy"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.mlp_step(*args, **(how | change))
    for masks in ([], [[True]], [[True] * 3, [False] * 4]):
        with pytest.raises(ValueError, match=r"each of the 3 layers; got masks of \["):
            ops.mlp_step(*args, **(how | {"differentiated": masks}))
    with pytest.raises(RuntimeError, match="must not be negative"):
        ops.mlp_step(*args, **(how | {"steps": -1}))
    with pytest.raises(RuntimeError, match="at least one inner step"):
        ops.mlp_step(*args, **(how | {"steps": 0}), record_inner=True)
    with pytest.raises(RuntimeError, match=r"runs on cpu.*, got a tensor on meta"):
        ops.mlp_step([p.to("meta") for p in args[0]], *args[1:], **how)
    with pytest.raises(RuntimeError, match=r"outside of torch\.func transforms"):
        torch.func.vmap(lambda x: ops.mlp_step(args[0], x, *args[2:], **how).meta_gradients)(
            args[1][None]
        )
