"""The MLP step against its reference, plain autograd with create_graph."""

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
from tests.helpers.mlp_cases import NETWORKS, TOLERANCE, check, examples, network, options, problem


def compare(args: list[Any], how: dict[str, Any]) -> None:
    check(ops.mlp_step(*args, record_inner=how["steps"] > 0, **how), args, how)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_the_reference(
    activation: str, loss: str, name: str, steps: int, exact: bool
) -> None:
    how = options(name, loss, activation) | {"steps": steps, "exact": exact}
    compare(problem(name, loss), how)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_the_reference_in_float32(activation: str, loss: str, exact: bool) -> None:
    # Near the kink of ReLU, rounding changes which side is taken.
    name = "no hidden layer" if activation == "relu" else "sine"
    if name == "sine" and loss == "cross_entropy":
        name = "three hidden"
    how = options(name, loss, activation) | {"exact": exact}
    compare(problem(name, loss, dtype=torch.float32), how)


@pytest.mark.parametrize("loss", LOSSES)
def test_relu_in_float32(loss: str) -> None:
    args, how = problem("sine", loss, dtype=torch.float32), options("sine", loss, "relu")
    found, expected = (
        ops.mlp_step(*args, **how).meta_gradients,
        reference.mlp_step(*args, **how, exact=True)[0],
    )
    assert (found - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("tasks", [1, 5, 33])
@pytest.mark.parametrize("exact", [True, False])
def test_any_number_of_tasks(tasks: int, exact: bool) -> None:
    compare(problem(tasks=tasks), options() | {"exact": exact})


@pytest.mark.parametrize("widths", [[4, 255, 17, 2], [300, 48, 256, 9]])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_wide_layers_and_mixed_activations(widths: list[int], dtype: torch.dtype) -> None:
    args = [network(widths, dtype), *examples(widths, "cross_entropy", 2, dtype)]
    how = options() | {"activations": ["silu", "gelu"], "loss": "cross_entropy", "exact": True}
    compare(args, how)


def test_layers_without_bias() -> None:
    compare(problem("three hidden", bias=False), options("three hidden") | {"exact": True})
    args = problem("sine")
    del args[0][3]  # the bias of the second layer alone
    compare(args, options() | {"exact": True})


def test_extreme_values_match_torch() -> None:
    for activation in ACTIVATIONS:
        args = problem("sine")
        args[1] *= 200  # saturation, or large numbers
        compare(args, options("sine", "mse", activation) | {"lr": 1e-8, "exact": True})


def test_kinks_match_torch() -> None:
    for activation in ("relu", "elu"):
        args = problem("sine")
        for bias in args[0][1::2]:
            bias.zero_()
        args[1][:, :3] = 0  # every unit of the first layer is at its kink
        compare(args, options("sine", "mse", activation) | {"steps": 1, "exact": True})


def test_ignored_targets() -> None:
    args, how = problem("three hidden", "cross_entropy"), options("three hidden", "cross_entropy")
    args[2][:, :4] = -100
    args[4][:, 5] = -100
    compare(args, how | {"exact": True})
    args[4][1] = -100  # a mean over nothing
    assert ops.mlp_step(*args, **how).query_loss.isnan().tolist() == [False, True, False]


def test_nan_propagates() -> None:
    for activation in ACTIVATIONS:
        args = problem("sine")
        args[1][1, 2] = float("nan")
        found = ops.mlp_step(*args, **options("sine", "mse", activation))
        assert found.meta_gradients.isnan().any(1).tolist() == [False, True, False]
        assert found.support_loss.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("exact", [True, False])
def test_bitwise_equal_for_any_number_of_threads_and_tasks(exact: bool) -> None:
    args = problem("three hidden", "cross_entropy", 13, dtype=torch.float32)
    how = options("three hidden", "cross_entropy", "silu") | {"exact": exact, "record_inner": True}
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
        (problem(name, loss, dtype=dtype), options(name, loss, activation) | {"record_inner": True})
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
