"""Values of the ops of a transformer block and their derivatives, in every dtype and size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta import ops, reference
from tests.ops.attention_cases import TOLERANCE, check
from tests.ops.block_cases import CASES, Case

SIZES = [(1, 1), (3, 2), (5, 15), (2, 16), (7, 17), (70, 33), (9, 300)]


def sized(case: Case, rows: int, width: int) -> Case:
    """The case with other sizes."""
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "layer_norm": ((rows, width), (width,), (width,)),
        "rms_norm": ((rows, width), (width,)),
        "cross_entropy": ((rows, width),),
        "linear_cross_entropy": ((rows, 3), (width, 3), (width,)),
    }
    name = next(n for n, c in CASES.items() if c is case)
    target = None if case.target is None else (width, (rows,))
    return replace(case, shapes=shapes.get(name, ((rows, width),)), target=target)


def derivatives(function: Callable[..., Tensor], tensors: list[Tensor]) -> Iterator[Tensor]:
    """The output, its gradients, and the gradients of these along fixed directions."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    dout = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out).add(0.1).requires_grad_()
    grads = torch.autograd.grad(out, leaves, dout, create_graph=True)
    directions = [t.detach().flip(0).contiguous() for t in tensors]
    yield from (out, *grads)
    inputs = [*leaves, dout]
    second = torch.autograd.grad(grads, inputs, directions, allow_unused=True)
    yield from (
        torch.zeros_like(t) if s is None else s for s, t in zip(second, inputs, strict=True)
    )


@pytest.mark.parametrize(("rows", "width"), SIZES)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    "name", ["layer_norm", "rms_norm", "gelu", "gelu tanh", "silu", "cross_entropy"]
)
def test_against_reference(name: str, dtype: torch.dtype, rows: int, width: int) -> None:
    if width == 2 and "norm" in name:
        width = 3  # of two numbers the result is nearly constant, its derivatives rounding errors
    case = sized(CASES[name], rows, width)
    if case.options.get("reduction", "mean") == "mean" and case.target is not None:
        case = replace(case, options={"reduction": "sum", "ignore_index": width})
    tensors, (function, expected) = case.tensors(dtype), case.functions()
    if width == 1 and "norm" in name:  # differences of rounding errors
        tensors = [t.abs() + 1 for t in tensors]
    elif width < 4 and "norm" in name:  # rows of nearly equal numbers magnify rounding errors
        spread = 4 * torch.arange(width, dtype=dtype)
        tensors = [(tensors[0] + spread).detach().requires_grad_(), *tensors[1:]]
    wide = list(derivatives(expected, [t.double() for t in tensors]))
    found = list(derivatives(function, tensors))
    if width == 1 and name == "layer_norm":  # its derivatives are zero, and rounding errors here
        for f, e in zip(found, wide, strict=True):
            assert (f - e).norm() <= 4 * TOLERANCE[dtype] * (1 + e.norm())
        return
    check(found, wide, dtype)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (40, 17), (33, 300)])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_linear_against_reference(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int, width: int
) -> None:
    monkeypatch.setattr("fastmeta.ops._linear_loss._CHUNK", 1000)
    case = sized(CASES["linear_cross_entropy"], rows, width)
    case = replace(case, options={"reduction": "sum", "ignore_index": width})
    tensors, (function, expected) = case.tensors(dtype), case.functions()
    found = list(derivatives(function, tensors))
    wide = list(derivatives(expected, [t.double() for t in tensors]))
    loose = 4 if dtype.itemsize == 2 else 1  # the logits are rounded
    for f, e in zip(found, wide, strict=True):
        assert (f - e).norm() <= loose * TOLERANCE[dtype] * max(1, e.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_float32_parameters(dtype: torch.dtype) -> None:
    x, (w, b) = torch.randn(5, 33).to(dtype), torch.randn(2, 33)
    for found, expected in (
        (ops.layer_norm(x, (33,), w, b), F.layer_norm(x.double(), (33,), w.double(), b.double())),
        (ops.rms_norm(x, (33,), w, 1e-5), F.rms_norm(x.double(), (33,), w.double(), 1e-5)),
    ):
        check([found], [expected], dtype)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    grads = torch.autograd.grad(ops.layer_norm(x, (33,), w, b).sum(), leaves)
    assert [g.dtype for g in grads] == [dtype, torch.float32, torch.float32]


@pytest.mark.parametrize("name", CASES)
def test_memory_layouts(name: str) -> None:
    case = CASES[name]
    tensors, (function, _) = case.tensors(torch.float32), case.functions()
    layouts = [
        lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
        lambda t: torch.stack([t, t + 1], -1)[..., 0],
        lambda t: torch._neg_view(-t),
    ]
    expected = list(derivatives(function, tensors))
    for layout in layouts:
        found = list(derivatives(function, [layout(t) for t in tensors]))
        if "linear" in name:  # torch's products may differ in the last bits
            torch.testing.assert_close(found, expected)
        else:
            assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "gelu", "cross_entropy"])
def test_same_bits_for_any_number_of_threads(name: str) -> None:
    case = sized(CASES[name], 301, 130)
    tensors, (function, _) = case.tensors(torch.float32), case.functions()
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(list(derivatives(function, tensors)))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "silu", "cross_entropy"])
def test_no_rows(name: str) -> None:
    case = sized(CASES[name], 0, 5)
    if case.target is not None:
        case = replace(case, options={"reduction": "sum"})
    function, expected = case.functions()
    tensors = case.tensors(torch.float64)
    results = [list(derivatives(f, tensors)) for f in (function, expected)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("own", "torchs"),
    [
        (ops.gelu, F.gelu),
        (partial(ops.gelu, approximate="tanh"), partial(F.gelu, approximate="tanh")),
        (ops.silu, F.silu),
    ],
)
def test_activations_far_from_zero(own, torchs, dtype: torch.dtype) -> None:
    """Up to the largest numbers, and relative to the curve even where it is nearly zero."""
    far = torch.tensor([1e-30, 5.0, 12.0, 38.0, 41.0, 90.0, 800.0, 1e4, 1e18, 1e37], dtype=dtype)
    x = torch.cat([-far, far])
    exact = torchs(x.double())
    torch.testing.assert_close(own(x).double(), exact, rtol=1e-5, atol=1e-30)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(own(leaf).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), leaf)
    slope = torch.where(x.abs() < 1, 0.5, (x > 0).to(dtype))
    torch.testing.assert_close(grad.detach(), slope, rtol=0, atol=0.03)
    assert second.isfinite().all()
    assert (second[x.abs() > 40].abs() < 1e-15).all()
    assert own(torch.tensor([float("nan")], dtype=dtype)).isnan().all()


def test_large_and_infinite_logits() -> None:
    z = torch.tensor([[1e4, -1e4, 0.0], [-torch.inf, 2.0, 1.0]], dtype=torch.float64)
    target = torch.tensor([1, 2])
    leaf = z.clone().requires_grad_()
    loss = ops.cross_entropy(leaf, target, reduction="sum")
    torch.testing.assert_close(loss, F.cross_entropy(z, target, reduction="sum"))
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    torch.testing.assert_close(grad, z.softmax(1) - F.one_hot(target, 3))
    assert torch.autograd.grad(grad.square().sum(), leaf)[0].isfinite().all()


def test_all_targets_ignored() -> None:
    z, target = torch.randn(3, 4), torch.full((3,), -100)
    assert ops.cross_entropy(z, target, reduction="sum") == 0
    assert ops.cross_entropy(z, target).isnan()


ERRORS = {
    "width": lambda: ops.layer_norm(torch.randn(3, 4), (5,)),
    "empty": lambda: ops.rms_norm(torch.randn(3, 0), (0,)),
    "weight": lambda: ops.layer_norm(torch.randn(3, 4), (4,), torch.randn(5)),
    "dtypes": lambda: ops.layer_norm(torch.randn(3, 4), (4,), torch.randn(4).double()),
    "integers": lambda: ops.silu(torch.arange(3)),
    "class": lambda: ops.cross_entropy(torch.randn(2, 3), torch.tensor([0, 3])),
    "targets": lambda: ops.cross_entropy(torch.randn(2, 3), torch.tensor([0])),
    "probabilities": lambda: ops.cross_entropy(torch.randn(2, 3), torch.rand(2)),
    "features": lambda: ops.linear_cross_entropy(
        torch.randn(2, 3), torch.randn(4, 2), torch.tensor([0, 1])
    ),
    "bias": lambda: ops.linear_cross_entropy(
        torch.randn(2, 3), torch.randn(4, 3), torch.tensor([0, 1]), linear_bias=torch.randn(3)
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_arguments(name: str) -> None:
    with pytest.raises(RuntimeError, match="fastmeta"):
        ERRORS[name]()


def test_wrong_options() -> None:
    x, y = torch.randn(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="approximate must be"):
        ops.gelu(x, approximate="tan")
    for function in (ops.cross_entropy, partial(ops.linear_cross_entropy, x)):
        with pytest.raises(ValueError, match="reduction must be"):
            function(x, y, reduction="average")
        with pytest.raises(ValueError, match="label_smoothing must be"):
            function(x, y, label_smoothing=2.0)


def test_references_equal_torchs() -> None:
    x, (w, b) = torch.randn(4, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    y = torch.tensor([0, 3, -100, 4])
    for found, expected in (
        (reference.layer_norm(x, (5,), w, b), F.layer_norm(x, (5,), w, b)),
        (reference.rms_norm(x, (5,), w), F.rms_norm(x, (5,), w)),
        (reference.gelu(x), F.gelu(x)),
        (reference.gelu(x, approximate="tanh"), F.gelu(x, approximate="tanh")),
        (reference.silu(x), F.silu(x)),
        (
            reference.cross_entropy(x, y, label_smoothing=0.1),
            F.cross_entropy(x, y, label_smoothing=0.1),
        ),
    ):
        torch.testing.assert_close(found, expected)
