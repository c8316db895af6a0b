"""The emulation of CUDA kernels: correct kernels pass, planted faults are found."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from fastmeta._testing import cuda

from fastmeta import _testing

SIDE = 64
SANITIZED = bool(cuda.sanitizers)
watched = pytest.mark.skipif(
    SANITIZED, reason="the emulation cannot guard shared memory under AddressSanitizer"
)
sanitized = pytest.mark.skipif(not SANITIZED, reason="only sanitizers see it: .ci/sanitize")


def run(kernel: str, seed: int, n: int = 2 * SIDE) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.standard_normal(n).astype(np.float32)
    out = np.full(n, np.nan, np.float32)
    cuda.faulty(kernel, values, out, seed)
    return values, out


@pytest.mark.parametrize("seed", range(5))
def test_correct_kernels(seed: int) -> None:
    values, out = run("reverse", seed)
    np.testing.assert_array_equal(out, values.reshape(2, SIDE)[:, ::-1].reshape(-1))
    values, out = run("reverse_dynamically", seed)
    np.testing.assert_array_equal(out, values.reshape(2, SIDE)[:, ::-1].reshape(-1))
    values, out = run("reverse_by_copies", seed)
    np.testing.assert_array_equal(out, values.reshape(2, SIDE)[:, ::-1].reshape(-1))
    values, out = run("half_warp_sums", seed)
    sums = values.astype(np.float64).reshape(-1, 16).sum(1).repeat(16)
    np.testing.assert_allclose(out, sums, rtol=1e-5, atol=1e-5)
    values, out = run("votes", seed)
    np.testing.assert_array_equal(out, values.reshape(-1, 32)[:, 0].repeat(32))
    values, out = run("reverse_by_the_last_block", seed, 5 * SIDE + 7)
    np.testing.assert_array_equal(out, values[::-1])


def test_matrix_products_of_a_warp() -> None:
    values = np.random.randint(-128, 128, 384).astype(np.float32)  # exact in bfloat16
    out = np.zeros(384, np.float32)
    cuda.faulty("matrix_product", values, out, 0)
    a, b = values[:256].reshape(16, 16), values[256:].reshape(16, 8)
    np.testing.assert_array_equal(out[:128].reshape(16, 8), a @ b)
    values = np.random.randint(-128, 128, 512).astype(np.float32)
    out = np.zeros(512, np.float32)
    cuda.faulty("matrix_rows", values, out, 0)
    matrices = values[:256].reshape(4, 8, 8)
    np.testing.assert_array_equal(out.reshape(2, 4, 8, 8), [matrices, matrices.swapaxes(1, 2)])


RACES = {
    "missing_barrier": r"reads shared memory that (no thread|thread .*) has written",
    "missing_second_barrier": r"shared memory that thread .* has (read|written) since the last",
    "two_writers": r"writes shared memory that thread .* has written since the last",
    "unset_shared": "reads shared memory that no thread has written",
    "unset_dynamic": "reads shared memory that no thread has written",
    "copies_without_wait": "reads shared memory that no thread has written",
    "matrix_rows_without_barrier": "reads shared memory that (no thread|thread .*) has written",
}


@watched
@pytest.mark.parametrize("kernel", RACES)
@pytest.mark.parametrize("seed", range(10))
def test_races_and_unset_memory_are_found_in_every_order(kernel: str, seed: int) -> None:
    with pytest.raises(cuda.Fault, match=RACES[kernel]) as caught:
        run(kernel, seed)
    assert f" of {kernel}: thread (" in str(caught.value)
    run("reverse", seed)


@sanitized
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
    "divergent_barrier": "waits forever",
    "two_barriers": "another barrier",
    "mask_without_caller": "not in its own mask",
    "mask_of_ended_lanes": "ended lane|waits forever",
    "mask_of_other_branch": "another mask or call",
    "source_outside_mask": "not in the mask",
    "shuffle_against_barrier": "waits forever|another",
    "tile_too_short": "past the end of an array",
    "misaligned_words": "misaligned address",
    "misaligned_matrix_row": "ldmatrix read a misaligned row",
    "product_of_half_a_warp": "ended lane|waits forever",
    "no_fence_before_the_ticket": "atomicAdd at blocks.h:.* without a __threadfence since the last",
    "no_fence_behind_the_ticket": "barrier without a __threadfence since its atomic operation",
}


@pytest.mark.parametrize("kernel", FAULTS)
@pytest.mark.parametrize("seed", range(3))
def test_faults_are_named_with_block_and_thread(kernel: str, seed: int) -> None:
    with pytest.raises(cuda.Fault, match=FAULTS[kernel]) as caught:
        run(kernel, seed)
    assert str(caught.value).startswith("in block (")
    assert "thread (" in str(caught.value)
    run("reverse", seed)  # and the next launch works


@pytest.mark.parametrize("seed", range(5))
def test_a_ticket_that_counts_wrongly_leaves_outputs_unset(seed: int) -> None:
    for blocks in (2, 5):
        assert np.isnan(run("ticket_not_reset", seed, blocks * SIDE)[1]).all()
        _, out = run("one_block_too_early", seed, blocks * SIDE)
        assert np.isnan(out).sum() == SIDE


def test_a_ticket_taken_before_the_block_has_written_changes_the_result_for_some_order() -> None:
    def right(seed: int) -> bool:
        values, out = run("ticket_before_the_barrier", seed)
        return np.array_equal(out, values[::-1])

    assert not all(right(seed) for seed in range(10))


def test_a_write_past_the_end_lands_in_the_strip_that_tests_keep_there() -> None:
    values, out = np.ones(SIDE, np.float32), np.zeros(SIDE + 8, np.float32)
    cuda.faulty("writes_past_the_end", values, out[:SIDE], 0)
    assert out[SIDE] == 1


def test_a_missing_tail_stays_unset() -> None:
    for n in (1, 31, 33, SIDE, 2 * SIDE + 1):
        _, out = run("stops_before_the_end", 0, n)
        assert np.isnan(out).tolist() == [False] * (n - 1) + [True]


def test_a_write_past_the_dynamic_shared_memory_is_found() -> None:
    with pytest.raises(cuda.Fault, match=r"in block \(.*past the end of the dynamic shared"):
        run("dynamic_tile_too_short", 0)
    run("reverse_dynamically", 0)


# In a separate process, which sanitizers abort.
SEEN_BY_SANITIZERS = {
    "reads_past_the_end": "heap-buffer-overflow",
    "writes_past_the_end": "heap-buffer-overflow",
    "overflowing_index": "signed integer overflow",
}
ALONE = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("fastmeta._testing", sys.argv[1])
testing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(testing)
values = np.ones(1000, np.float32)
testing.cuda.faulty(sys.argv[2], values, np.zeros_like(values), 0)
"""


def alone(kernel: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", ALONE, _testing.__file__, kernel]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


@sanitized
@pytest.mark.parametrize("kernel", SEEN_BY_SANITIZERS)
def test_sanitizers_report_what_only_they_see(kernel: str) -> None:
    found = alone(kernel)
    assert found.returncode != 0
    assert SEEN_BY_SANITIZERS[kernel] in found.stderr
    assert "faults/memory.h" in found.stderr


@sanitized
def test_sanitizers_pass_correct_kernels() -> None:
    found = alone("reverse")
    assert (found.returncode, found.stderr) == (0, "")


def test_exceptions_of_a_thread_propagate() -> None:
    with pytest.raises(IndexError, match="thread 7"):
        run("throws", 0)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no faulty kernel is called nothing"):
        run("nothing", 0)
