from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmeta.data._rng import TaskRNG, check_seed


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 30), min_size=1, max_size=8),
    st.integers(1, 12),
)
def test_draws_are_distinct_numbers_of_their_population(
    seed: int, index: int, spare: list[int], count: int
) -> None:
    populations = np.array(spare) + count
    numbers = TaskRNG(seed, index).sample(populations, count)
    assert numbers.shape == (len(spare), count)
    for row, population in zip(numbers, populations, strict=True):
        assert len(set(row.tolist())) == count
        assert row.min() >= 0
        assert row.max() < population


def test_ordered_selections_are_equally_likely() -> None:
    rows = 24_000
    pairs = TaskRNG(1, 2).sample(np.full(rows, 4), 2)
    seen = Counter(map(tuple, pairs.tolist()))
    assert len(seen) == 12
    expected = rows / 12
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi_square < 31.3  # exceeded once in a thousand with 11 degrees of freedom


def test_uniform_covers_its_range() -> None:
    values = TaskRNG(3, 4).uniform(-2.0, 6.0, (50_000,))
    assert values.min() >= -2.0
    assert values.max() < 6.0
    counts, _ = np.histogram(values, bins=8, range=(-2.0, 6.0))
    assert np.abs(counts - 6250).max() < 5 * np.sqrt(6250)


def test_streams_differ_by_seed_and_by_index() -> None:
    draws = {(s, i): tuple(TaskRNG(s, i).uniform(0, 1, (4,))) for s in range(4) for i in range(4)}
    assert len(set(draws.values())) == len(draws)


def test_streams_of_a_seed_never_change() -> None:
    draws = TaskRNG(7, 3)
    assert draws.sample(np.array([10, 1000]), 4).tolist() == [[7, 4, 5, 2], [530, 480, 313, 762]]
    assert draws.uniform(0, 1, (2,)).tolist() == [0.4505072250242077, 0.389206269159322]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_invalid_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=r"less than 2\*\*64"):
        check_seed(seed)
