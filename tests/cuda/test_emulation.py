"""The emulation itself: it lets sound kernels pass and finds planted faults."""

from __future__ import annotations

import numpy as np
import pytest
from fastmeta._testing import cuda

SIDE = 64


def run(kernel: str, seed: int, n: int = 2 * SIDE) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.standard_normal(n).astype(np.float32)
    out = np.full(n, np.nan, np.float32)
    cuda.faulty(kernel, values, out, seed)
    return values, out


@pytest.mark.parametrize("seed", range(5))
def test_sound_kernels(seed: int) -> None:
    values, out = run("reverse", seed)
    np.testing.assert_array_equal(out, values.reshape(2, SIDE)[:, ::-1].reshape(-1))
    values, out = run("reverse_dynamically", seed)
    np.testing.assert_array_equal(out, values.reshape(2, SIDE)[:, ::-1].reshape(-1))
    values, out = run("half_warp_sums", seed)
    sums = values.astype(np.float64).reshape(-1, 16).sum(1).repeat(16)
    np.testing.assert_allclose(out, sums, rtol=1e-5, atol=1e-5)
    values, out = run("votes", seed)
    np.testing.assert_array_equal(out, values.reshape(-1, 32)[:, 0].repeat(32))


@pytest.mark.parametrize("kernel", ["missing_barrier", "missing_second_barrier"])
def test_a_missing_barrier_changes_the_result_for_some_order(kernel: str) -> None:
    values = np.random.standard_normal(SIDE).astype(np.float32)
    results = []
    for seed in range(10):
        out = np.full(SIDE, np.nan, np.float32)
        cuda.faulty(kernel, values, out, seed)
        results.append(out.tobytes())
    assert len(set(results)) > 1


FAULTS = {
    "divergent_barrier": "waits for ever",
    "two_barriers": "another barrier",
    "mask_without_caller": "not in its own mask",
    "mask_of_ended_lanes": "is gone|waits for ever",
    "mask_of_other_branch": "another mask or call",
    "source_outside_mask": "not in the mask",
    "shuffle_against_barrier": "waits for ever|another",
    "tile_too_short": "past the end of an array",
    "misaligned_words": "misaligned address",
}


@pytest.mark.parametrize("kernel", FAULTS)
@pytest.mark.parametrize("seed", range(3))
def test_faults_are_named_with_block_and_thread(kernel: str, seed: int) -> None:
    with pytest.raises(cuda.Fault, match=FAULTS[kernel]) as caught:
        run(kernel, seed)
    assert str(caught.value).startswith("in block (")
    assert "thread (" in str(caught.value)
    run("reverse", seed)  # and the next launch works


def test_a_write_past_the_end_lands_in_the_strip_that_tests_keep_there() -> None:
    values, out = np.ones(SIDE, np.float32), np.zeros(SIDE + 8, np.float32)
    cuda.faulty("writes_past_the_end", values, out[:SIDE], 0)
    assert out[SIDE] == 1


def test_a_write_past_the_dynamic_shared_memory_is_found() -> None:
    with pytest.raises(cuda.Fault, match=r"in block \(.*past the end of the dynamic shared"):
        run("dynamic_tile_too_short", 0)
    run("reverse_dynamically", 0)


def test_exceptions_of_a_thread_arrive() -> None:
    with pytest.raises(IndexError, match="thread 7"):
        run("throws", 0)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no faulty kernel is called nothing"):
        run("nothing", 0)
