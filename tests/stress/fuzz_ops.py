"""Fuzzes the public ops: the result of the reference implementation, or a clear error.

``python -m tests.stress.fuzz_ops --minutes 8`` draws calls of every op in ``fastmeta.ops``: sizes
from zero on, dtypes, memory layouts (gaps, margins, transposed, repeated, negated), and corrupts
two in three: another dtype or shape, sparse, meta or shared memory, NaN, other objects than
tensors, numbers out of range. A valid call must give the result of its reference in
``fastmeta.reference``, a corrupted one that or a ``ValueError``, ``TypeError`` or ``RuntimeError``
with a message. No call may crash, change other arguments than its outputs, or write anything
before it fails.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from fastmeta import ops
from tests.stress import fuzzing
from tests.stress.op_calls import CALLS
from tests.stress.op_tensors import DTYPES, Call, Draw, plain, spread, tensors_in

# Relative to one plus the norm of the result: loose, since rounding is tested elsewhere.
TOLERANCE = {
    torch.float64: 1e-8,
    torch.float32: 1e-3,
    torch.bfloat16: 2e-2,
    torch.float16: 4e-3,
}
# The last is torch's for a missing dimension.
REFUSALS = (ValueError, TypeError, RuntimeError, IndexError)
Place = tuple[list[Any], int]  # an argument, or an item of one that is a list


def places(args: list[Any]) -> Iterator[Place]:
    for k, arg in enumerate(args):
        yield args, k
        if isinstance(arg, list):
            yield from places(arg)


# Types of arguments and results.
NOT_CALLED = {"HeadSimilarity", "MlpStep", "SequenceLayer", "SequenceStep", "Workspace"}
OTHER_DTYPES = (*DTYPES, torch.int64, torch.bool, torch.complex64)
OTHER_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "vector": lambda t: t.detach().reshape(-1),
    "first": lambda t: t[0] if t.dim() and len(t) else t,
    "deeper": lambda t: t[None],
    "shorter": lambda t: t[..., 1:] if t.dim() else t,
    "longer": lambda t: torch.cat([t, t], -1) if t.dim() else t,
    "fewer": lambda t: t[1:] if t.dim() else t,
    "more": lambda t: torch.cat([t, t]) if t.dim() else t,
    "none of them": lambda t: t[:0] if t.dim() else t,
    "number": lambda t: t.new_ones(()),
    "on no device": lambda t: t.to("meta"),
    "sparse": lambda t: t.detach().to_sparse(),
    "one place for all": lambda t: t.new_ones(()).expand(t.shape),
    "gaps": lambda t: spread(t.detach()) if t.dim() and t.is_floating_point() else t,
    "needs a gradient": lambda t: t.detach().clone().requires_grad_(t.is_floating_point()),
}
NO_TENSORS = (None, 1.5, -1, "text", [], (), {}, np.ones(3))
NUMBERS = (-1, 0, 1, 3, 2**31, 2**62, 2.0**70, 0.5, -0.5, math.nan, math.inf, None, "3", [1])
CLASSES = (-100, -1, 10**9)
VALUES = (math.nan, math.inf, -math.inf, 1e30, 1e-30, 0.0)


def corrupt(draw: Draw, args: list[Any]) -> str:
    """Corrupts one argument, and returns the kind of change."""
    where, k = draw(st.sampled_from(list(places(args))))
    old = where[k]
    if isinstance(old, Tensor) and not plain(old):
        return "tensor"  # that is corrupted already
    if isinstance(old, Tensor):
        kind = draw(st.sampled_from(["tensor", "dtype", "no tensor", "same", "value"]))
        if kind == "tensor":
            kind = draw(st.sampled_from(list(OTHER_TENSORS)))
            where[k] = OTHER_TENSORS[kind](old)
        elif kind == "dtype":
            where[k] = old.detach().to(draw(st.sampled_from(OTHER_DTYPES)))
        elif kind == "same":  # memory that another argument has, too
            tensors = [t for t in tensors_in(args) if plain(t)]
            shared = draw(st.sampled_from(tensors)).detach().reshape(-1)
            start = draw(st.integers(0, 2))
            if shared.numel() >= start + old.numel():
                where[k] = shared[start : start + old.numel()].view(old.shape)
        elif kind == "no tensor":
            where[k] = copied(draw(st.sampled_from(NO_TENSORS)), {})
        elif old.numel():
            new = old.detach().clone(memory_format=torch.contiguous_format)
            values = VALUES if old.is_floating_point() else CLASSES
            new.view(-1)[draw(st.integers(0, old.numel() - 1))] = draw(st.sampled_from(values))
            where[k] = new
        return kind
    if isinstance(old, list):
        change = draw(st.sampled_from(["shorter", "longer", "reversed", "none", "None", "tuple"]))
        where[k] = {
            "shorter": old[:-1],
            "longer": old + old[-1:],
            "reversed": old[::-1],
            "none": [],
            "None": None,
            "tuple": tuple(old),
        }[change]
        return f"list {change}"
    where[k] = copied(draw(st.sampled_from(NUMBERS)), {})
    # A large factor magnifies rounding.
    return "value" if isinstance(old, float) else "number"


def memory(args: list[Any]) -> list[bytes]:
    """Every byte of the storages of a call's tensors, including gaps."""
    return [bytes(t.detach().untyped_storage()) for t in tensors_in(args) if plain(t)]


def check(make: Callable[[Draw], Call], data: st.DataObject) -> str:
    draw = data.draw
    warnings.simplefilter("ignore")
    torch.manual_seed(draw(st.integers(0, 2**31)))
    torch.set_num_threads(draw(st.integers(1, 3)))
    call = make(draw)
    corruptions = [
        corrupt(draw, call.args) for _ in range(draw(st.integers(0, 2 * call.corruptible)))
    ]
    reference_args, before = copied(call.args, {}), memory(call.args)
    try:
        with torch.no_grad():
            found = call.op(*call.args)
    except AttributeError:
        assert corruptions  # Python may refuse an argument of another type by itself
        return "refused"
    except REFUSALS as error:
        assert corruptions, "a valid call was refused"
        text = str(error)
        assert text.strip(), "refused without a message"
        assert "INTERNAL ASSERT" not in text, text
        assert memory(call.args) == before, "written to by a call that failed"
        return "refused"
    if any(t.device.type == "meta" for t in tensors_in(call.args)):
        return "shapes alone"
    if found is None and "same" in corruptions:
        return "in place on shared memory"  # the result depends on the order of the copies
    with torch.no_grad():
        expected = call.reference(*reference_args)
    if "value" not in corruptions:
        if found is None:  # in place
            found, expected = map(storages, (call.args, reference_args))
        else:
            assert memory(call.args) == before, "an argument was changed"
        same(found, expected)
    if call.smooth and not corruptions:
        same(gradients(call.op, call.args), gradients(call.reference, reference_args))
    return "valid" if not corruptions else "corrupted"


def copied(value: Any, storages: dict[int, Any]) -> Any:
    """The same call on other memory, with the same layout and sharing."""
    if isinstance(value, list | tuple):
        return type(value)(copied(v, storages) for v in value)
    if not isinstance(value, Tensor) or not plain(value):
        return value
    storage = value.detach().untyped_storage()
    own = storages.setdefault(storage.data_ptr(), storage.clone())
    new = torch.empty(0, dtype=value.dtype)
    new.set_(own, value.storage_offset(), value.shape, value.stride())
    return torch._neg_view(new) if value.is_neg() else new


def storages(args: list[Any]) -> list[Tensor]:
    """The storages of the tensors, including gaps."""
    return [
        torch.empty(0, dtype=t.dtype).set_(t.detach().untyped_storage())
        for t in tensors_in(args)
        if plain(t)
    ]


def same(found: Any, expected: Any) -> None:
    mine, its = tensors_in(found), tensors_in(expected)
    assert len(mine) == len(its)
    for f, e in zip(mine, its, strict=True):
        assert (f.shape, f.dtype, f.device) == (e.shape, e.dtype, e.device)
        if not plain(f):
            continue
        dtype, f, e = f.dtype, f.detach().double(), e.detach().double()
        assert torch.equal(f.isnan(), e.isnan())
        error = (f - e).nan_to_num(0).norm()
        assert error <= TOLERANCE.get(dtype, 0) * (1 + e.nan_to_num(0).norm()), (f, e)


def gradients(function: Callable[..., Any], args: list[Any]) -> list[Tensor]:
    """Gradients of the weighted sum of the results with respect to all float64 arguments."""
    args = copied(args, {})
    leaves = []
    for where, k in places(args):
        if isinstance(where[k], Tensor) and where[k].dtype == torch.float64:
            where[k] = where[k].detach().clone().requires_grad_()
            leaves.append(where[k])
    results = [t for t in tensors_in(function(*args)) if t.requires_grad]
    if not leaves or not results:
        return []
    total = sum((t * torch.arange(t.numel()).view(t.shape).cos()).sum() for t in results)
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]


def describe(counts: Counter[str], targets: list[str]) -> str:
    return (
        f"{counts.total()} calls of {len(targets)} ops: {counts['valid']} valid and "
        f"{counts['corrupted']} corrupted ones equal to the reference, "
        f"{counts['refused']} refused; no crash, no argument changed"
    )


if __name__ == "__main__":
    missing = set(ops.__all__) - CALLS.keys() - NOT_CALLED
    assert not missing, missing
    checks = {name: partial(check, make) for name, make in CALLS.items()}
    fuzzing.main("fuzz_ops", __doc__, checks, describe)
