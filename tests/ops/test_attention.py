"""Values of attention and of its first and second derivatives, against the plain composition."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmeta import ops, reference
from tests.ops.attention_cases import CONFIGS, TOLERANCE, check, derivatives, tangents


def upstream(tensors: list[Tensor]) -> list[Tensor]:
    q, _, v = tensors
    return [torch.randn_like(t) for t in (q.new_empty(*q.shape[:-1], v.shape[-1]), *tensors)]


def wide(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == torch.bool else tensor.double()


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_against_float64(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    tensors, mask = config.tensors(dtype), config.make_mask(dtype)
    directions = upstream(tensors)
    exact = [[t.double() for t in group] for group in (tensors, directions)]
    found = partial(ops.attention, mask=mask, **config.options)
    expected = partial(reference.attention, mask=wide(mask), **config.options)
    for compute in (derivatives, tangents):
        check(compute(found, tensors, directions), compute(expected, *exact), dtype)


@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if c.window is None])
def test_as_torch_has_it(name: str) -> None:
    """Causal alignment, masks, grouped queries, and queries that see no key."""
    config = CONFIGS[name]
    if config.mask and config.causal:
        pytest.skip("torch takes one or the other")
    q, k, v = config.tensors(torch.float64)
    mask = config.make_mask(torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(
            *(q, k, v, mask),
            is_causal=config.causal,
            scale=config.scale,
            enable_gqa=config.heads != config.kv_heads,
        )
    found = ops.attention(q, k, v, mask, causal=config.causal, scale=config.scale)
    torch.testing.assert_close(found, expected)
    if config.mask == "keep":
        assert not found[1, :, config.queries // 2].any()


def test_a_mask_of_the_smallest_numbers_is_that_of_torch() -> None:
    """As transformers' masks: rows without a key become means of all values."""
    q, k, v = CONFIGS["31"].tensors(torch.float32)
    mask = torch.zeros(31, 31).masked_fill(torch.ones(31, 31).triu(-3) > 0, torch.finfo().min)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH):  # the gradients of torch's fused attention are wrong here
        expected = F.scaled_dot_product_attention(q, k, v, mask)
    found = ops.attention(q, k, v, mask)
    torch.testing.assert_close(found, expected)
    up = torch.randn_like(found)
    grads = [torch.autograd.grad(y, leaves, up) for y in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 2, 5, 8), (2, 0, 5, 8), (2, 2, 0, 8)])
def test_dimensions(shape: tuple[int, ...]) -> None:
    q, k, v = torch.randn(3, *shape, dtype=torch.float64)
    torch.testing.assert_close(ops.attention(q, k, v), reference.attention(q, k, v))
    mask = torch.rand(*shape[:-1], shape[-2]) > 0.3
    torch.testing.assert_close(ops.attention(q, k, v, mask), reference.attention(q, k, v, mask))


def test_no_keys() -> None:
    q, k, v = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 0, 8), torch.randn(1, 2, 0, 8)
    assert not ops.attention(q, k, v).any()


def test_strided_inputs() -> None:
    """As models make them: heads next to each other in memory, or a transpose of the width."""
    packed = torch.randn(2, 40, 3, 4, 16, dtype=torch.float64)
    across = torch.randn(3, 2, 4, 16, 40, dtype=torch.float64)
    for q, k, v in (packed.permute(2, 0, 3, 1, 4), across.mT):
        tensors = [q, k, v]
        directions = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in upstream(tensors)]
        found = derivatives(ops.attention, tensors, directions)
        dense = [t.contiguous() for t in tensors], [t.contiguous() for t in directions]
        expected = derivatives(ops.attention, *dense)
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["many tiles", "grouped queries", "one token"])
def test_bitwise_equal_for_any_number_of_threads(name: str) -> None:
    config = CONFIGS[name]
    tensors = config.tensors(torch.float32)
    directions = upstream(tensors)
    function = partial(ops.attention, **config.options)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(derivatives(function, tensors, directions))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(f, e) for f, e in zip(other, results[0], strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_numbers_reach_the_output(value: float) -> None:
    q, k, v = torch.randn(3, 1, 1, 70, 16)
    for tensor in (q, k, v):
        kept, tensor[0, 0, 3, 2] = tensor[0, 0, 3, 2].clone(), value
        expected, found = F.scaled_dot_product_attention(q, k, v), ops.attention(q, k, v)
        assert torch.equal(found.isfinite(), expected.isfinite())
        tensor[0, 0, 3, 2] = kept


Q = torch.zeros(1, 2, 5, 8)
BAD = {
    "dtypes": (lambda: ops.attention(Q, Q.double(), Q), "dtype"),
    "integers": (lambda: ops.attention(Q.long(), Q.long(), Q.long()), "float32, float64"),
    "dimensions": (lambda: ops.attention(Q, Q[0], Q[0]), "number of dimensions"),
    "batches": (lambda: ops.attention(Q, Q.expand(2, -1, -1, -1), Q), "batch dimensions"),
    "widths": (lambda: ops.attention(Q, Q[..., :4], Q), "do not match|does not match"),
    "heads": (lambda: ops.attention(Q, Q[:, :0], Q[:, :0]), "must divide"),
    "tokens": (lambda: ops.attention(Q, Q, Q[:, :, :3]), "does not match"),
    "masks": (lambda: ops.attention(Q, Q, Q, torch.zeros(4, 5)), "broadcast"),
    "gradients of masks": (
        lambda: ops.attention(Q, Q, Q, torch.zeros(5, 5, requires_grad=True)),
        "mask has no gradient",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(RuntimeError, match=f"fastmeta: .*({message})"):
        call()


def test_windows_are_positive() -> None:
    with pytest.raises(ValueError, match="window must be an integer of at least 1"):
        ops.attention(Q, Q, Q, window=0)
